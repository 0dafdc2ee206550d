"use strict";

// Asks a server everything once, from the protos alone: one JSON object of what to ask on standard input, one of what
// came on standard output.

const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const protobuf = require("protobufjs");
const crc32c = require("./crc32c");

const CHUNK_BYTES = 1 << 20;
const task = JSON.parse(fs.readFileSync(0, "utf8"));

const files = ["artifact", "edgevlm", "evaluation"].map((area) => `vlmpress/${area}/v1/${area}_service.proto`);
const options = { includeDirs: [task.protos], keepCase: true, longs: Number, enums: String, defaults: true };
const { vlmpress } = grpc.loadPackageDefinition(loader.loadSync(files, options));

// google.rpc, whose messages stand in the trailing metadata of a failed call.
const root = new protobuf.Root();
root.resolvePath = (_, target) => (path.isAbsolute(target) ? target : path.join(task.googleProtos, target));
root.loadSync(["google/rpc/status.proto", "google/rpc/error_details.proto"]);

function client(Service, { token = task.token, tls = true } = {}) {
  const ca = tls && fs.readFileSync(task.ca);
  const metadata = (_, done) => {
    const headers = new grpc.Metadata();
    if (token) headers.set("authorization", `Bearer ${token}`);
    done(null, headers);
  };
  const credentials = tls
    ? grpc.credentials.combineChannelCredentials(
        grpc.credentials.createSsl(ca),
        grpc.credentials.createFromMetadataGenerator(metadata),
      )
    : grpc.credentials.createInsecure();
  return new Service(task.address, credentials);
}

function unary(stub, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + 60_000;
    stub[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });
}

async function collect(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}

// Code, text and ErrorInfo of a call that has to fail.
async function failure(call) {
  try {
    await call;
  } catch (error) {
    const [data] = error.metadata.get("grpc-status-details-bin");
    const details = data ? root.lookupType("google.rpc.Status").decode(data).details : [];
    const packed = details.find((detail) => detail.type_url.endsWith("/google.rpc.ErrorInfo"));
    const info = packed && root.lookupType("google.rpc.ErrorInfo").decode(packed.value).toJSON();
    const [requestId] = error.metadata.get("x-request-id");
    return { code: grpc.status[error.code], text: error.details, info: info || null, requestId: requestId || null };
  }
  throw new Error("expected an error, got an answer");
}

// Sends a file from `offset` on; each chunk waits for the answer to the one before it.
async function writeFile(stub, digest, name, data, offset) {
  const call = stub.WriteFile();
  const answers = call[Symbol.asyncIterator]();
  let persisted = offset;
  while (persisted < data.length) {
    const chunk = data.subarray(persisted, persisted + CHUNK_BYTES);
    call.write({ digest, path: name, offset: persisted, data: chunk, crc32c: crc32c(chunk) });
    const { value, done } = await answers.next();
    if (done) throw new Error(`${name}: the stream ended at ${persisted}`);
    persisted = value.persisted_size;
  }
  call.end();
  await answers.next();
  return persisted;
}

function changedChunk(stub, digest) {
  const call = stub.WriteFile();
  call.write({ digest, path: task.file, offset: 0, data: Buffer.from("a"), crc32c: 1 });
  call.end();
  return call;
}

async function write(stub) {
  const manifest = fs.readFileSync(path.join(task.artifact, "manifest.json"));
  const started = await unary(stub, "StartWrite", { manifest_json: manifest });
  const wrongChunk = started.already_there ? null : await failure(collect(changedChunk(stub, started.digest)));
  for (const file of started.files) {
    const data = fs.readFileSync(path.join(task.artifact, file.path));
    // A file of no bytes is whole without a chunk.
    if (file.persisted_size < data.length) {
      await writeFile(stub, started.digest, file.path, data, file.persisted_size);
    }
  }
  const { artifact } = await unary(stub, "CommitWrite", { digest: started.digest, tag: "from-node" });
  return { digest: started.digest, tags: artifact.tags, sizeBytes: artifact.size_bytes, wrongChunk };
}

async function readFile(stub, artifact, name, file) {
  const chunks = await collect(stub.ReadFile({ artifact, path: name }));
  for (const chunk of chunks) {
    if (crc32c(chunk.data) !== chunk.crc32c) throw new Error(`${name}: wrong CRC-32C at ${chunk.offset}`);
  }
  fs.writeFileSync(file, Buffer.concat(chunks.map((chunk) => chunk.data)));
  return chunks.map((chunk) => chunk.offset);
}

async function generate(stub) {
  const image = fs.readFileSync(task.image);
  const request = { model: task.model, images: [image], prompt: "is it red ?", max_new_tokens: 4 };
  const events = await collect(stub.Generate(request));
  const text = events.flatMap((event) => (event.token ? [event.token.text] : [])).join("");
  return { text, numEvents: events.length, finish: events.at(-1).finish };
}

async function main() {
  const { ArtifactService } = vlmpress.artifact.v1;
  const artifacts = client(ArtifactService);
  const predictions = [
    { index: 0, question_type: "yes/no", expected: "yes", answer: "Yes " },
    { index: 1, question_type: "other", expected: "red", answer: "blue" },
  ];
  const score = await unary(client(vlmpress.evaluation.v1.EvaluationService), "ScorePredictions", { predictions });
  const written = await write(artifacts);
  const absent = { artifact: "none" };
  return {
    score,
    written,
    offsets: await readFile(artifacts, written.digest, task.file, task.out),
    answer: await generate(client(vlmpress.edgevlm.v1.EdgeVlmService)),
    absent: await failure(unary(artifacts, "GetManifest", absent)),
    absentFile: await failure(collect(artifacts.ReadFile({ artifact: "from-node", path: "none" }))),
    noToken: await failure(unary(client(ArtifactService, { token: "" }), "GetManifest", absent)),
    plainText: await failure(unary(client(ArtifactService, { tls: false }), "GetManifest", absent)),
  };
}

main().then(
  (results) => process.stdout.write(JSON.stringify(results), () => process.exit(0)),
  (error) => {
    process.stderr.write(`${error.stack}\n`);
    process.exit(1);
  },
);
