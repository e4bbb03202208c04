// Server-sent events of a response, as they come.

/** The data of each event, parsed; comments are left out. body: a ReadableStream of bytes. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const data of blocks.map(dataOf)) if (data) yield JSON.parse(data);
    }
  } finally {
    reader.cancel().catch(() => {}); // a stream that broke off cannot be cancelled any more
  }
}

const dataOf = (block) =>
  block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
