"""From prompts to directions: recipes, and the vectors published with the paper."""
