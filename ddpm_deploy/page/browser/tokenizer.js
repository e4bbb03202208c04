// The tokenizer of ddpm_deploy.tokenizer: known words have a number each, any other word is spelled byte by byte.

const FIRST_WORD = 257, SPACE = 1 + " ".charCodeAt(0); // 0 is padding, 1 ... 256 are the bytes
const WHITE = /[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/; // what Python calls white

export const split = (text) => text.toLowerCase().split(WHITE).filter(Boolean);

/** The numbers of a text, `length` of them, as an Array; throws an Error for a text that is too long. */
export function encode(text, { vocabulary, length }) {
  const numbers = [], known = new Map(vocabulary.map((each, i) => [each, FIRST_WORD + i]));
  let spelled = false;
  for (const each of split(text)) {
    const isKnown = known.has(each);
    if (isKnown) numbers.push(known.get(each));
    else numbers.push(...(spelled ? [SPACE] : []), ...Array.from(new TextEncoder().encode(each), (byte) => byte + 1));
    spelled = !isKnown;
  }
  if (numbers.length > length) {
    throw new Error(`The prompt takes ${numbers.length} tokens, and the model reads at most ${length}: shorten it, or use words that the model knows.`);
  }
  return [...numbers, ...Array(length - numbers.length).fill(0)];
}
