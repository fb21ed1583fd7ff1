// Record what TensorFlow.js computes with the same Inception weights: inception_recorded.json.
//   npm install @tensorflow/tfjs-core@4.22.0 @tensorflow/tfjs-layers@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0
//   node record_inception.js PARTS IMAGES, where IMAGES holds NAME.bin, uint8 [299,299,3]
const fs = require("fs");
const path = require("path");
const tf = require("@tensorflow/tfjs-core");
const layers = require("@tensorflow/tfjs-layers");
require("@tensorflow/tfjs-backend-wasm");

const [parts, images] = process.argv.slice(2);
const part = (name) => require(path.resolve(parts, "inception_v3", `${name}.min.js`));
const STAGES = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map((number) => `mixed${number}`);
const EVERY = 8; // of the pooled features

(async () => {
  await tf.setBackend("wasm");
  const { modelTopology, weightsManifest } = part("model");
  const { paths, weights: weightSpecs } = weightsManifest[0];
  const shards = paths.map((name) => Buffer.from(part(name).default ?? part(name), "base64"));
  const bytes = Uint8Array.from(Buffer.concat(shards));
  const load = async () => ({ modelTopology, weightSpecs, weightData: bytes.buffer });
  const model = await layers.loadLayersModel({ load });
  const outputs = STAGES.map((name) => model.getLayer(name).output);
  const network = layers.model({ inputs: model.inputs, outputs });
  const recorded = {};
  for (const file of fs.readdirSync(images).filter((name) => name.endsWith(".bin")).sort()) {
    const pixels = Float32Array.from(fs.readFileSync(path.join(images, file)));
    const x = tf.div(tf.sub(tf.tensor4d(pixels, [1, 299, 299, 3]), 128), 128);
    const stages = network.predict(x);
    const pooled = Array.from(tf.mean(stages.at(-1), [1, 2]).dataSync());
    recorded[file.replace(".bin", "").replaceAll("+", "/")] = {
      stage_means: stages.map((stage) => tf.mean(tf.abs(stage)).dataSync()[0]),
      features: pooled.filter((_, number) => number % EVERY === 0),
    };
  }
  const round = (_, value) => (typeof value === "number" ? Number(value.toPrecision(7)) : value);
  const facts = { versions: { "tfjs-core": tf.version_core, node: process.version }, every: EVERY };
  process.stdout.write(JSON.stringify({ ...facts, images: recorded }, round) + "\n");
})();
