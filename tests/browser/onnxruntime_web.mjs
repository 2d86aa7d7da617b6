// Runs ONNX files in onnxruntime-web, WebAssembly in a headless Chromium. A line of JSON in, one out:
//   {"load": PATH, "level": "disabled"|"all"}                            -> {"session": N}
//   {"session": N, "feeds": {NAME: {"type", "dims", "base64"}}}          -> {"outputs": [{"type", "dims", "base64"}, ...]}
// and {"error": TEXT} where that fails. Usage: node onnxruntime_web.mjs CHROMIUM
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const DIST = new URL("node_modules/onnxruntime-web/dist/", import.meta.url);
const TYPES = { mjs: "text/javascript", wasm: "application/wasm" };

const browser = await chromium.launch({ executablePath: process.argv[2], args: ["--no-sandbox"] });
const page = await browser.newPage();
await page.route("**/*", async (route) => {
  const name = new URL(route.request().url()).pathname.slice(1);
  if (!name) return route.fulfill({ contentType: "text/html", body: "<!doctype html><title>onnxruntime-web</title>" });
  return route.fulfill({ contentType: TYPES[name.split(".").pop()], body: await readFile(new URL(name, DIST)) });
});
await page.goto("http://localhost/");
await page.evaluate(async () => {
  globalThis.ort = await import("/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = "/";
  ort.env.wasm.numThreads = 1;
  globalThis.sessions = [];
  globalThis.bytes = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  globalThis.text = (array) => {
    const all = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
    let found = "";
    for (let at = 0; at < all.length; at += 32768) found += String.fromCharCode(...all.subarray(at, at + 32768));
    return btoa(found);
  };
});

async function load({ load, level }) {
  const model = (await readFile(load)).toString("base64");
  return page.evaluate(
    async ([model, level]) => {
      const session = await ort.InferenceSession.create(bytes(model), { graphOptimizationLevel: level });
      return { session: sessions.push(session) - 1 };
    },
    [model, level],
  );
}

async function run(asked) {
  return page.evaluate(async ({ session, feeds }) => {
    const arrays = { float32: Float32Array, int64: BigInt64Array, uint8: Uint8Array };
    const tensor = ({ type, dims, base64 }) => new ort.Tensor(type, new arrays[type](bytes(base64).buffer), dims);
    const fed = Object.fromEntries(Object.entries(feeds).map(([name, value]) => [name, tensor(value)]));
    const found = await sessions[session].run(fed);
    const outputs = sessions[session].outputNames.map((name) => found[name]);
    return { outputs: outputs.map(({ type, dims, data }) => ({ type, dims, base64: text(data) })) };
  }, asked);
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  const answer = await (asked.load ? load(asked) : run(asked)).catch((error) => ({ error: error.message.split("\n")[0] }));
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
