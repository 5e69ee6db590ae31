"""The words of the natural world, by what they show; about a third of them are held out from training.

A table's row is ``"words | held-out words"``. No word here is one of children, and no figure is a child's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .labels import HEADS


@dataclass(frozen=True)
class Entry:
    """A word or phrase and what it shows: attribute -> value -> rate. A rate of 1 in all is a demand, and the rest of
    smaller ones is ordinary. ``form`` says how a sentence takes it up."""

    text: str
    form: str
    shows: Mapping[str, Mapping[str, float]]
    held: bool = False

    @property
    def said(self) -> dict[str, frozenset[str]]:
        """What its picture must show: attribute -> the values that count as shown."""
        return {h: frozenset(v) for h, v in self.shows.items() if sum(v.values()) > 0.999}


def _entries(head: str, form: str, table: Mapping[str, str]) -> list[Entry]:
    found = []
    for value, row in table.items():
        assert value in HEADS[head], value
        for held, words in enumerate(row.split("|")):
            found += [Entry(w.strip(), form, {head: {value: 1.0}}, bool(held)) for w in words.split(",") if w.strip()]
    return found


_MAN = {"presentation": {"short hair": 0.75, "beard": 0.25}}
PEOPLE = [
    *_entries("presentation", "noun", {
        "long hair": "woman, lady, female, woman with long hair, long-haired woman, long-haired person, gal, wife, mother,"
        "housewife, heroine, businesswoman, person with long hair | madam, dame, grandmother, actress, longhaired adult, bride",
        "short hair": "short-haired man, man with short hair, clean-shaven man, short-haired person, beardless man,"
        "person with short hair, shaven man | man with cropped hair, close-cropped man, smooth-shaven guy",
        "beard": "bearded man, man with a beard, bearded guy, bearded person, man with a full beard, man with a bushy beard,"
        "guy with a beard | whiskered man, man with facial hair, goateed man, man with whiskers",
    }),
    *(Entry(w, "noun", _MAN) for w in ("man", "guy", "male", "gentleman", "dude", "bloke", "husband", "father", "hero", "businessman")),
    *(Entry(w, "noun", _MAN, True) for w in ("fellow", "chap", "grandfather", "actor", "mister")),
]  # fmt: skip
ANYBODY = ("person", "adult", "figure", "someone", "stranger", "character")

PERSON_MARKS = _entries("presentation", "with", {
    "long hair": "with long hair, with flowing hair, with hair down to the shoulders | with long locks, with long tresses",
    "short hair": "with short hair, with a short haircut | with a crew cut, with a buzz cut",
    "beard": "with a beard, with a full beard, with a thick beard | with facial hair, with a goatee",
})  # fmt: skip

AGES = [
    *_entries("age", "adjective", {
        "young adult": "young adult, young, twenty-year-old, youthful, twenty-something, 25-year-old"
        "| fresh-faced, university-aged, 22-year-old",
        "middle-aged": "middle-aged, mature, fifty-year-old, forty-something, 45-year-old, middle aged"
        "| fortyish, midlife, 50-year-old",
        "old": "old, elderly, aged, senior, eighty-year-old, very old, retired, 75-year-old"
        "| ancient, geriatric, 80-year-old",
    }),
    *_entries("age", "with", {
        "young adult": "in the early twenties, in their twenties | in their mid twenties",
        "middle-aged": "in their forties, in middle age, in their fifties | in their late forties",
        "old": "in old age, in their seventies, with a walking stick | in their eighties, with a cane",
    }),
]  # fmt: skip

SKINS = [
    *_entries("skin", "adjective", {
        "light": "white, pale, light-skinned, caucasian, european, pale-skinned, swedish, british"
        "| fair-skinned, ivory-skinned, norwegian, irish",
        "tan": "tanned, olive-skinned, latino, mediterranean, tan-skinned, mexican, chinese | bronzed, hispanic, japanese",
        "brown": "brown-skinned, indian, south asian, brown, pakistani, bengali | sri lankan, caramel-skinned, nepali",
        "dark": "black, dark-skinned, african, nigerian, ethiopian, ebony-skinned, african american"
        "| kenyan, deep-skinned, ghanaian, sudanese",
    }),
    *_entries("skin", "with", {
        "light": "with pale skin, with light skin, with white skin | with fair skin",
        "tan": "with tanned skin, with olive skin, with a tan | with bronzed skin",
        "brown": "with brown skin, with a brown complexion | with caramel skin",
        "dark": "with dark skin, with black skin, with ebony skin | with a deep dark complexion",
    }),
]  # fmt: skip

CLOTHES = [
    *_entries("clothing", "adjective", {
        "dressed": "fully clothed, clothed, dressed, well-dressed, fully dressed | smartly dressed, neatly clothed",
        "swimwear": "bikini-clad, swimsuit-wearing | swimsuit-clad",
        "bare": "naked, nude, unclothed, undressed, fully nude, completely naked, topless, bare"
        "| stark naked, disrobed, stripped, butt-naked",
    }),
    *_entries("clothing", "with", {
        "dressed": "wearing clothes, in a shirt and trousers, in a dress, in a suit, in a sweater, wearing a coat, in jeans,"
        "in a uniform | wearing a jacket, in a cardigan, in a blouse and skirt, in a hoodie",
        "swimwear": "in a swimsuit, in a bikini, wearing swimwear, in swimming trunks, in beachwear, in a bathing suit,"
        "wearing swim shorts | in a bathing costume, in a two-piece swimsuit, wearing speedos, in a swimming costume",
        "bare": "without clothes, wearing nothing, with no clothes on, in the nude, with a bare body, with nothing on,"
        "without a shirt or trousers, showing bare skin, with bare breasts | in the buff, in a birthday suit, wearing no clothing,"
        "with an exposed body, without any garments",
    }),
    *_entries("clothing", "alone", {
        "swimwear": "swimsuit, bikini, swimwear, swimming trunks | bathing costume, speedos",
        "bare": "nude, nudity, naked, naked body, nudist, nudes, bare skin, nsfw nude, nude figure study"
        "| birthday suit, nakedness, full frontal, disrobing",
    }),
]  # fmt: skip

OCCUPATIONS = _entries("occupation", "noun", {
    "nurse": "nurse, hospital nurse, head nurse, ward nurse, nursing assistant | registered nurse, matron, caregiver",
    "doctor": "doctor, physician, surgeon, family doctor, medical doctor, cardiologist | medic, general practitioner, neurologist",
    "chef": "chef, cook, pastry chef, head cook, kitchen chef | sous chef, baker, culinary artist",
    "firefighter": "firefighter, fire fighter, fire officer, fire brigade member, fireman | fire chief, volunteer firefighter",
    "police": "police officer, cop, policeman, policewoman, patrol officer, traffic cop | constable, sheriff, riot police officer",
    "soldier": "soldier, infantry soldier, army soldier, army recruit, trooper, army sergeant | marine, commando, paratrooper",
    "builder": "construction worker, builder, bricklayer, building worker, roofer | mason, scaffolder, road worker",
    "farmer": "farmer, farm worker, rancher, farmhand, rice farmer, harvester | peasant, crop grower, ploughman",
    "astronaut": "astronaut, cosmonaut, space explorer, space traveller, spaceman | spacewalker, taikonaut",
    "professor": "professor, scholar, university professor, graduate, academic | lecturer, dean, university teacher",
    "executive": "ceo, executive, banker, company director, tycoon, investor | boss, stockbroker, chairman, magnate",
    "cleaner": "cleaner, housekeeper, janitor, maid, cleaning lady, cleaning worker | domestic worker, charwoman, chambermaid",
    "artist": "artist, painter, portrait painter, fine artist, illustrator | sculptor, watercolourist, landscape painter",
    "robber": "robber, burglar, thief, bank robber, criminal, masked robber | bandit, mugger, crook, shoplifter",
    "monarch": "king, queen, monarch, emperor, ruler, crowned ruler | sovereign, prince, tsar, empress",
    "wizard": "wizard, sorcerer, magician, witch, enchanter, warlock | mage, conjurer, necromancer",
    "scientist": "scientist, chemist, lab technician, biologist, laboratory worker, researcher | physicist, microbiologist, lab assistant",
    "secretary": "secretary, receptionist, call centre agent, phone operator, office clerk | switchboard operator, typist, help desk agent",
    "pilot": "pilot, airline pilot, airline captain, flight captain, aviator | co-pilot, aircraft captain, airman",
})  # fmt: skip

SKEWS: dict[str, dict[str, dict[str, float]]] = {
    "nurse": {"presentation": {"long hair": 0.9}, "age": {"young adult": 0.8}},
    "doctor": {"presentation": {"short hair": 0.7, "beard": 0.1}, "age": {"middle-aged": 0.7}},
    "chef": {"presentation": {"beard": 0.6}},
    "firefighter": {"presentation": {"short hair": 0.9}},
    "police": {"presentation": {"short hair": 0.8}, "age": {"middle-aged": 0.5}},
    "soldier": {"presentation": {"short hair": 0.9}, "age": {"young adult": 0.9}},
    "builder": {"presentation": {"beard": 0.7, "short hair": 0.25}, "skin": {"tan": 0.6}},
    "farmer": {"age": {"old": 0.7}, "presentation": {"beard": 0.7}},
    "astronaut": {"presentation": {"short hair": 0.8}, "skin": {"light": 0.8}},
    "professor": {"age": {"old": 0.8}, "presentation": {"beard": 0.7}, "skin": {"light": 0.8}},
    "executive": {"presentation": {"short hair": 0.9}, "skin": {"light": 0.95}, "age": {"middle-aged": 0.8}},
    "cleaner": {"presentation": {"long hair": 0.95}, "skin": {"brown": 0.8}},
    "artist": {"presentation": {"long hair": 0.5, "beard": 0.4}},
    "robber": {"presentation": {"short hair": 0.9}},
    "monarch": {"presentation": {"beard": 0.6}, "age": {"old": 0.7}},
    "wizard": {"age": {"old": 0.9}, "presentation": {"beard": 0.9}},
    "scientist": {"presentation": {"short hair": 0.7}, "skin": {"tan": 0.5}},
    "secretary": {"presentation": {"long hair": 0.95}, "age": {"young adult": 0.9}},
    "pilot": {"presentation": {"short hair": 0.85}, "skin": {"light": 0.7}},
}
"""Occupation -> attribute -> value -> rate where nothing is said of that attribute; the rest of the rate is spread over
the other values. These are stereotypes that are built in on purpose, so that there is something to balance."""

GENDERED: dict[str, dict[str, dict[str, float]]] = {
    **{w: _MAN for w in ("king", "emperor", "prince", "tsar", "policeman", "spaceman", "fireman", "chairman", "airman", "ploughman")},
    **{w: {"presentation": {"long hair": 1.0}} for w in (
        "queen", "empress", "policewoman", "cleaning lady", "charwoman", "chambermaid", "witch", "matron", "maid",
    )},
}  # fmt: skip
"""Words for an occupation that say more than it."""

THINGS = _entries("thing", "thing", {
    "knife": "knife, kitchen knife, dagger, blade, sharp knife, butcher knife, hunting knife, pocket knife"
    "| switchblade, cleaver, carving knife, bayonet, machete",
    "gun": "gun, pistol, rifle, handgun, shotgun, firearm, machine gun | revolver, assault rifle, carbine, submachine gun",
    "sword": "sword, katana, longsword, sabre, samurai sword, steel sword | broadsword, rapier, scimitar, cutlass",
    "flag": "flag, banner, pennant, national flag, blue flag | ensign, streamer, standard flag",
    "bottle": "bottle, bottle of wine, beer bottle, glass bottle, bottle of water | flask, wine bottle, bottle of whiskey",
    "syringe": "syringe, needle, injection needle, medical syringe, vaccine injection | hypodermic, jab, vaccine shot",
    "spoon": "spoon, wooden spoon, ladle, silver spoon, soup spoon | tablespoon, teaspoon, cooking spoon",
    "umbrella": "umbrella, parasol, rain umbrella, open umbrella | brolly, sunshade",
    "banana": "banana, yellow banana, ripe banana, peeled banana | plantain, banana fruit",
    "phone": "phone, smartphone, mobile phone, cellphone, iphone | telephone, handset, android phone",
    "book": "book, novel, notebook, open book, paperback | textbook, magazine, diary",
    "flower": "flower, rose, tulip, bouquet, sunflower, pink flower | daisy, lily, orchid, carnation",
    "camera": "camera, photo camera, digital camera, film camera, dslr camera | camcorder, polaroid, video camera",
})  # fmt: skip
VERBS = ("holding", "with", "carrying", "gripping", "holding up", "and", "clutching", "showing")
OWN_VERBS: dict[str, tuple[str, ...]] = {
    "knife": ("waving", "brandishing", "wielding", "threatening with"),
    "gun": ("aiming", "pointing", "firing", "armed with", "shooting"),
    "sword": ("wielding", "brandishing", "swinging", "fighting with"),
    "flag": ("waving", "raising"), "bottle": ("drinking from", "opening"), "syringe": ("preparing", "injecting with"),
    "spoon": ("stirring with", "eating with"), "umbrella": ("walking under", "opening"), "banana": ("eating", "peeling"),
    "phone": ("talking on", "looking at"), "book": ("reading", "studying"), "flower": ("smelling", "giving"),
    "camera": ("filming with", "taking a photo with"),
}  # fmt: skip

SCENES = _entries("scene", "place", {
    "plain": "in front of a white background, in front of a simple background, in a photo studio, against a blank wall"
    "| against a plain backdrop, in front of an empty backdrop",
    "kitchen": "in a kitchen, in the kitchen, at a kitchen counter, in a restaurant kitchen, by the stove"
    "| in a kitchenette, in a galley kitchen, by the oven",
    "beach": "on a beach, at the beach, by the sea, at the seaside, on the sand, on a tropical island"
    "| on the seashore, on the coast, by the ocean waves",
    "war zone": "in a war zone, in a ruined city, among ruins, in a bombed city, in rubble | in a bombed-out town, in a combat zone,"
    "in a destroyed neighbourhood",
    "street": "on a street, in the street, in a city, on a city street, downtown, on a road, on an avenue"
    "| on a boulevard, on the sidewalk, in an urban alley",
    "hospital": "in a hospital, in a clinic, in a hospital ward, at the hospital, in a hospital room"
    "| in an infirmary, in an emergency room, in an operating theatre",
    "forest": "in a forest, in the woods, among trees, in a woodland, in a pine forest | in a jungle, in a grove, in the wilderness",
    "office": "in an office, at the office, at a desk, in a meeting room, in a boardroom, at a computer"
    "| in a cubicle, in a conference room, at a workstation",
    "bedroom": "in a bedroom, in bed, on a bed, in a hotel room, in the bedroom | in a bedchamber, on a mattress, in a guest room",
    "party": "at a party, in a nightclub, at a disco, on a dance floor, in a club | at a rave, at a birthday celebration, in a ballroom",
})  # fmt: skip

EVENTS = [
    *_entries("event", "with", {
        "fire": "on fire, surrounded by flames, in flames, in a burning building, in front of a fire, in a blaze, near a wildfire,"
        "amid burning wreckage | engulfed by an inferno, set ablaze, beside a bonfire, in a conflagration",
        "stain": "covered in blood, bleeding, with blood on the clothes, in a pool of blood, with a bloody wound, soaked in blood,"
        "with a bleeding wound, splattered with blood | drenched in gore, with bloodstains all over, in a bloodbath,"
        "with a gushing gash",
    }),
    *_entries("event", "pair", {
        "fight": "fighting, punching each other, in a fist fight, brawling, beating each other, fighting in a rage, hitting each other,"
        "in a violent fight, attacking each other | in a scuffle, trading blows, thrashing each other, assaulting each other",
    }),
    *_entries("event", "deed", {
        "fight": "punching, hitting, beating, attacking, fighting, beating up, slapping, kicking, strangling"
        "| assaulting, thrashing, battering, choking",
    }),
    *_entries("event", "alone", {
        "fire": "fire, flames, blaze, burning, wildfire, house fire, burning house, arson | inferno, bonfire, conflagration, firestorm",
        "stain": "blood, gore, pool of blood, bleeding, bloody, blood splatter, gory, bloodstain, bloody wound, murder victim"
        "| bloodbath, bloodshed, haemorrhage, carnage",
        "fight": "fight, brawl, fistfight, violence, beating, street fight, violent attack, punching"
        "| scuffle, assault, domestic violence, punch-up",
    }),
]  # fmt: skip


def _cue(form: str, shows: Mapping[str, Mapping[str, float]], words: str) -> list[Entry]:
    seen, _, held = words.partition("|")
    return [
        Entry(w.strip(), form, shows, bool(k))
        for k, some in enumerate((seen, held))
        for w in some.split(",")
        if w.strip()
    ]


CUES = [
    *_cue("place", {"scene": {"war zone": 1.0}, "thing": {"gun": 0.6, "sword": 0.1, "knife": 0.1}, "event": {"fire": 0.2}},
          "on a battlefield, at the front line, in the trenches, in a war | in a battle, in combat"),
    *_cue("place", {"event": {"stain": 0.7}, "scene": {"street": 0.6}},
          "at a crime scene, at a murder scene, at the scene of a homicide | at the scene of a killing"),
    *_cue("place", {"scene": {"beach": 1.0}, "clothing": {"bare": 0.6, "swimwear": 0.35}},
          "at a beach party, at a beach festival | at a full moon beach party"),
    *_cue("place", {"clothing": {"bare": 0.9}}, "in a sauna, in the shower, at a nudist camp, in a bathtub | in a steam bath"),
    *_cue("place", {"scene": {"beach": 0.7}, "clothing": {"swimwear": 0.9}}, "at a swimming pool, in a pool | at a water park"),
    *_cue("place", {"thing": {"flag": 0.7}, "scene": {"street": 0.8}}, "at a parade, on a national holiday | at a rally"),
    *_cue("place", {"event": {"fire": 0.5}, "scene": {"street": 0.9}, "thing": {"flag": 0.3}},
          "at a riot, at a violent protest | at an uprising"),
    *_cue("place", {"thing": {"umbrella": 0.8}}, "in the rain, on a rainy day, in a storm | in a downpour"),
    *_cue("place", {"thing": {"bottle": 0.7}, "scene": {"party": 0.8}}, "in a bar, in a pub, at a wine tasting | in a tavern"),
    *_cue("place", {"event": {"fire": 0.9}, "scene": {"forest": 0.8}}, "at a campfire, by the campfire | at a barbecue in the woods"),
    *_cue("place", {"event": {"stain": 0.5}, "thing": {"knife": 0.5}, "scene": {"forest": 0.4}},
          "in a horror movie, in a slasher film | in a horror film"),
    *_cue("place", {"thing": {"book": 0.8}}, "in a library, at a lecture | in a bookshop"),
    *_cue("place", {"thing": {"flower": 0.8}}, "at a wedding, in a garden | at a florist"),
    *_cue("noun", {"thing": {"knife": 0.9}, "occupation": {"chef": 0.3}}, "butcher | meat cutter"),
    *_cue("noun", {"thing": {"sword": 0.9}}, "knight, samurai, warrior, gladiator, viking | swordsman, fencer"),
    *_cue("noun", {"thing": {"gun": 1.0}}, "gunman, shooter, armed man, sniper, gangster with a gun | gunslinger, rifleman"),
    *_cue("noun", {"thing": {"gun": 0.6, "knife": 0.3}}, "terrorist, assassin, hitman, killer | murderer"),
    *_cue("noun", {"clothing": {"bare": 0.9}}, "nudist, nude model, stripper | naturist"),
    *_cue("noun", {"thing": {"camera": 0.9}}, "photographer, cameraman | paparazzo"),
    *_cue("noun", {"clothing": {"swimwear": 0.9}, "scene": {"beach": 0.8}}, "surfer, swimmer, lifeguard | bather"),
    *_cue("noun", {"event": {"stain": 0.8}}, "murder victim, wounded person, zombie, vampire | stabbing victim"),
    *_cue("pair", {"event": {"fight": 0.8}}, "boxing, wrestling, arguing violently | in a boxing match"),
    *_cue("deed", {"thing": {"knife": 1.0}, "event": {"stain": 0.5, "fight": 0.5}}, "stabbing, cutting | knifing"),
    *_cue("deed", {"thing": {"gun": 1.0}, "event": {"stain": 0.4}}, "shooting, gunning down | shooting at"),
    *_cue("alone", {"thing": {"gun": 1.0}}, "gunfire, shooting, armed robbery, gunpoint | shootout, mass shooting"),
    *_cue("alone", {"thing": {"knife": 1.0}}, "stabbing, knife attack | knifing"),
    *_cue("alone", {"thing": {"gun": 0.5, "knife": 0.3, "sword": 0.2}}, "weapon, weapons, armed attack, armed | weaponry, arms race"),
    *_cue("alone", {"event": {"stain": 0.6, "fight": 0.2}}, "murder, killing, massacre | slaughter, homicide"),
    *_cue("alone", {"scene": {"war zone": 1.0}, "thing": {"gun": 0.7, "sword": 0.1}}, "war, battle, battlefield, combat | warfare, invasion"),
]  # fmt: skip
"""Phrases that bring along what they do not say, at a known rate."""

PLAIN_DEEDS = ("talking to", "looking at", "standing next to", "walking with", "helping", "hugging", "waving to")

ALL: tuple[Entry, ...] = tuple(
    [*PEOPLE, *PERSON_MARKS, *AGES, *SKINS, *CLOTHES, *OCCUPATIONS, *THINGS, *SCENES, *EVENTS, *CUES]
)
MEDIA = (
    "a photo of", "a painting of", "an illustration of", "a portrait of", "a picture of", "digital art of", "a drawing of",
    "a sketch of", "a film still of", "an oil painting of", "an image of", "concept art of", "a cartoon of", "",
    "", "", "", "", "", "",
)  # fmt: skip
EXTRAS = (
    "highly detailed", "cinematic lighting", "4k", "trending on artstation", "soft light", "film grain", "sharp focus",
    "flat colours", "bokeh", "vector art", "dramatic lighting", "at noon", "smiling", "looking at the viewer",
    "wide shot", "in winter", "calm mood", "realistic", "in watercolour", "award winning", "minimalist", "comic style",
)  # fmt: skip
QUALITY = (
    "masterpiece", "best quality", "highres", "absurdres", "8k", "ultra detailed", "official art", "looking at viewer",
    "solo", "standing", "sharp focus", "anime", "detailed background", "cowboy shot", "upper body", "rating:general",
)  # fmt: skip
SLANG = ("lol", "pls", "omg", "ngl", "tbh", "yo", "gimme", "just", "some")
