// Clients of Node.js in a sandbox, as clients.py has them. NODE_PATH does not hold for modules, so that they
// are named by their place.
const place = process.argv[2];
const messages = [{ role: "user", content: "say it" }];

const clients = {
  async fetch() {
    const answer = await fetch("https://docs.example/guide?a=1");
    return JSON.stringify(await answer.json());
  },
  async openai() {
    const { default: OpenAI } = await import(`${place}/openai/index.mjs`);
    const client = new OpenAI({ maxRetries: 0, timeout: 30000 });
    const whole = await client.chat.completions.create({ model: "m", messages });
    let text = "";
    const pieces = await client.chat.completions.create({ model: "m", messages, stream: true });
    for await (const piece of pieces) text += piece.choices[0].delta.content;
    return `${whole.choices[0].message.content} ${text}`;
  },
  async anthropic() {
    const { default: Anthropic } = await import(`${place}/@anthropic-ai/sdk/index.mjs`);
    const client = new Anthropic({ maxRetries: 0, timeout: 30000 });
    const asked = { model: "m", max_tokens: 9, messages };
    const whole = await client.messages.create(asked);
    return `${whole.content[0].text} ${await client.messages.stream(asked).finalText()}`;
  },
  async websocket() {
    const { default: WebSocket } = await import(`${place}/ws/wrapper.mjs`);
    const headers = { Authorization: `Bearer ${process.env.OPENAI_API_KEY}` };
    const socket = new WebSocket("wss://api.openai.com/v1/realtime?model=m", { headers });
    return await new Promise((resolve, reject) => {
      socket.on("open", () => socket.send("over a socket"));
      socket.on("message", (data) => resolve(data.toString()));
      socket.on("error", reject);
      socket.on("close", () => reject(new Error("it ended before it answered")));
    });
  },
};

for (const [name, client] of Object.entries(clients)) {
  try {
    console.log(`node-${name} ${await client()}`);
  } catch (error) {
    console.log(`node-${name} FAILED ${error.stack} ${error.cause}`.replaceAll("\n", " | "));
  }
}
process.exit(0);
