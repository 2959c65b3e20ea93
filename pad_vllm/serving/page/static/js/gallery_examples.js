/**
 * Prompts and settings, each run greedily on the model that it names, and chosen since its two answers visibly
 * differ there. `words`: a learned prefix; the server then runs with --instructions.
 */
export const EXAMPLES = [
  {
    prompt: "Describe a rainy day in the city.",
    note: "Wet pavement becomes laughter and fresh flowers.",
    weights: { positive: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Describe a rainy day in the city.",
    note: "The same slider the other way: gray mist, broken glass.",
    weights: { positive: -1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "What is inflation?",
    note: "From a textbook to “Alright, little one”.",
    weights: { simple: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Could people live on the moon?",
    note: "Four words instead of four paragraphs.",
    weights: { brief: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Tell me about cats.",
    note: "An encyclopedia falls in love.",
    weights: { positive: 1 },
    beta: 1,
    models: ["smollm2"],
  },
  {
    prompt: "Give me an idea for a birthday party.",
    note: "Two sliders at once.",
    weights: { friendly: 1, positive: 0.5 },
    beta: 1,
    models: ["smollm2"],
  },
];
