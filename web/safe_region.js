// The rows of the node Safe Region, and the report below every node of this pack, which stays when the page is loaded
// again. Plain DOM widgets: the classic renderer and the Vue renderer show the same.
import { app } from "../../scripts/app.js"
import { api } from "../../scripts/api.js"

const NODE = "SafeRegionGuard"
const PREFIX = "SafeRegion"
const KEPT = "safe_region_report"
const ROW = 30

const STYLE = `
.safe-region-rows { display: flex; flex-direction: column; gap: 4px; font: 12px sans-serif; width: 100%;
    box-sizing: border-box; padding: 2px 4px; overflow-y: auto; color: var(--input-text, #ddd); }
.safe-region-row { display: flex; gap: 4px; align-items: center; height: 24px; flex: none; }
.safe-region-row.off select, .safe-region-row.off input[type=number] { opacity: 0.45; }
.safe-region-row.wrong select { outline: 1px solid #e06c5a; }
.safe-region-rows select, .safe-region-rows input[type=number], .safe-region-rows button {
    background: var(--comfy-input-bg, #222); color: var(--input-text, #ddd); border: 1px solid var(--border-color, #444);
    border-radius: 4px; height: 22px; box-sizing: border-box; font: inherit; }
.safe-region-rows select { flex: 1; min-width: 0; }
.safe-region-rows input[type=number] { width: 58px; }
.safe-region-rows button { cursor: pointer; padding: 0 7px; }
.safe-region-report { white-space: pre-line; overflow-wrap: anywhere; overflow-y: auto; font: 12px sans-serif;
    box-sizing: border-box; padding: 4px 6px; width: 100%; color: var(--input-text, #ddd); user-select: text; }
`

/** @returns {{concept: string, strength: string, on: boolean}[]} */
function parsed(text) {
    return (text ?? "").split("\n").flatMap(line => {
        const on = !line.trim().startsWith("#")
        const plain = line.trim().replace(/^#+/, "").trim()
        const at = plain.lastIndexOf(":")
        const concept = (at < 0 ? plain : plain.slice(0, at)).trim()
        return concept ? [{ concept, strength: at < 0 ? "1" : plain.slice(at + 1).trim(), on }] : []
    })
}

function written(rows) {
    return rows.map(r => `${r.on ? "" : "# "}${r.concept}: ${r.strength}`).join("\n")
}

function element(kind, properties = {}, children = []) {
    const found = Object.assign(document.createElement(kind), properties)
    found.append(...children)
    return found
}

const SAID = {
    en: { add: "concept", twice: "This concept stands in two rows.", gone: "There is no such concept any more." },
    de: { add: "Konzept", twice: "Dieses Konzept steht in zwei Zeilen.", gone: "Dieses Konzept gibt es nicht mehr." },
    fr: { add: "concept", twice: "Ce concept figure dans deux lignes.", gone: "Ce concept n'existe plus." },
    ja: { add: "コンセプト", twice: "このコンセプトは 2 行にあります。", gone: "このコンセプトはもうありません。" },
    zh: { add: "概念", twice: "此概念出现在两行中。", gone: "此概念已不存在。" },
}

function translated(key) {
    const locale = app.extensionManager?.setting?.get?.("Comfy.Locale") ?? "en"
    return (SAID[locale] ?? SAID.en)[key]
}

/** Rows in place of the text box of the input `concepts`; the text is what is saved and sent. */
function addRows(node, concepts) {
    const source = node.widgets?.find(w => w.name == "concepts")
    if (!source) return
    const box = element("div", { className: "safe-region-rows" })
    let rows = parsed(source.value)

    function changed() {
        widget.callback?.(widget.value)
        node.graph?.setDirtyCanvas?.(true, true)
        draw()
    }

    function rowElement(row, number) {
        const names = concepts.includes(row.concept) ? concepts : [row.concept, ...concepts]
        const select = element("select", { ariaLabel: `concept ${number + 1}` },
            names.map(n => element("option", { value: n, textContent: n, selected: n == row.concept })))
        select.addEventListener("change", () => { row.concept = select.value; changed() })
        const on = element("input", { type: "checkbox", checked: row.on, ariaLabel: `on ${number + 1}` })
        on.addEventListener("change", () => { row.on = on.checked; changed() })
        const strength = element("input",
            { type: "number", min: 0, max: 10, step: 0.05, value: row.strength, ariaLabel: `strength ${number + 1}` })
        strength.addEventListener("change", () => { row.strength = strength.value || "1"; changed() })
        const out = element("button", { type: "button", textContent: "×", ariaLabel: `remove ${number + 1}` })
        out.addEventListener("click", () => { rows.splice(number, 1); changed() })
        const twice = row.on && rows.some((r, i) => i != number && r.on && r.concept == row.concept)
        const wrong = row.on && (twice || !concepts.includes(row.concept))
        const title = !wrong ? "" : twice ? translated("twice")
            : translated("gone")
        return element("div", { className: `safe-region-row${row.on ? "" : " off"}${wrong ? " wrong" : ""}`, title },
            [on, select, strength, out])
    }

    function draw() {
        const add = element("button", { type: "button", textContent: `+ ${translated("add")}` })
        add.addEventListener("click", () => {
            const free = concepts.find(c => !rows.some(r => r.concept == c)) ?? concepts[0]
            rows.push({ concept: free, strength: "1", on: true })
            changed()
        })
        box.replaceChildren(...rows.map(rowElement), add)
        const least = node.computeSize?.()
        if (least && node.size[1] < least[1]) node.setSize([node.size[0], least[1]])
    }

    for (const kind of ["pointerdown", "wheel", "keydown"]) box.addEventListener(kind, e => e.stopPropagation())
    const height = () => ROW * (rows.length + 1) + 8
    const place = node.widgets.indexOf(source)
    node.widgets.splice(place, 1)
    source.onRemove?.()
    source.element?.remove?.()
    const widget = node.addDOMWidget("concepts", "safe_region_rows", box, {
        hideOnZoom: false, getMinHeight: height, getMaxHeight: height, getValue: () => written(rows),
        setValue: text => { rows = parsed(text); draw() },
    })
    widget.tooltip = source.tooltip
    node.widgets.splice(node.widgets.indexOf(widget), 1)
    node.widgets.splice(place, 0, widget)
    draw()
}

/** The node of an id as the server says it, in a subgraph too ("12:5"). */
function nodeOf(id) {
    let graph = app.rootGraph ?? app.graph, node = null
    for (const part of String(id).split(":")) {
        node = graph?.getNodeById?.(Number(part)) ?? graph?.getNodeById?.(part)
        graph = node?.subgraph
    }
    return node
}

function showReport(node, text) {
    let widget = node.widgets?.find(w => w.name == "safe_region_report")
    if (!widget) {
        const box = element("div", { className: "safe-region-report" })
        widget = node.addDOMWidget("safe_region_report", "safe_region_report", box, {
            serialize: false, hideOnZoom: false, getMinHeight: () => 64, getValue: () => box.textContent,
        })
        widget.serialize = false
        const least = node.computeSize?.()
        if (least && node.size[1] < least[1]) node.setSize([node.size[0], least[1]])
    }
    widget.element.textContent = text
    node.graph?.setDirtyCanvas?.(true, true)
}

app.registerExtension({
    name: "SafeRegion",
    async setup() {
        document.head.append(element("style", { textContent: STYLE }))
        api.addEventListener("safe_region.report", ({ detail }) => {
            const node = nodeOf(detail.node)
            if (!node) return
            node.properties[KEPT] = detail.text
            showReport(node, detail.text)
        })
        api.addEventListener("executed", ({ detail }) => {  // of nodes that did not run again, too
            const node = nodeOf(detail?.node), text = detail?.output?.text
            if (node?.type?.startsWith(PREFIX) && text?.length && !node.properties[KEPT]) showReport(node, text.join("\n"))
        })
    },
    async beforeRegisterNodeDef(nodeType, nodeData) {
        if (!nodeData.name?.startsWith(PREFIX)) return
        const created = nodeType.prototype.onNodeCreated
        nodeType.prototype.onNodeCreated = function (...given) {
            const found = created?.apply(this, given)
            if (nodeData.name == NODE) addRows(this, nodeData.input?.required?.concepts?.[1]?.concepts ?? [])
            return found
        }
        const configured = nodeType.prototype.onConfigure
        nodeType.prototype.onConfigure = function (...given) {
            const found = configured?.apply(this, given)
            if (this.properties?.[KEPT]) showReport(this, this.properties[KEPT])
            return found
        }
    },
})
