/** Against a real server; `make test-node` starts it, and says in NANOSERVE_TEST what the Python client got from it. */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

import { ApiError, Client, InvalidRequest } from '../src/client.js';

if (process.env.NANOSERVE_TEST === undefined) throw new Error('there is no server: run `make test-node`');
const { address, secured, answers } = JSON.parse(process.env.NANOSERVE_TEST);
const client = new Client(address);
after(() => client.close());
const ENDLESS = { text: 'x', stop: { ignoreEos: true } };
// Output tokens of an endless call that was cancelled soon: it would go on for 2,000.
const FEW = 1000;

/** Reads a stream to its end. */
async function collect(stream) {
  const events = [];
  for await (const response of stream) events.push(response);
  const deltas = events.filter(({ event }) => event === 'delta').map(({ delta }) => delta);
  return {
    events,
    text: deltas.map((delta) => delta.text).join(''),
    tokenIds: deltas.flatMap((delta) => delta.tokenIds),
  };
}

/** Waits until the server holds nothing for anybody. */
async function idle() {
  for (let load; ; await new Promise((resolve) => setTimeout(resolve, 20))) {
    load = await client.getLoad({ timeoutSeconds: 10 });
    if (load.numRunningRequests + load.numWaitingRequests + load.numHeldBlocks === 0) return load;
  }
}

test('greedy text and token ids are those of the Python client', async () => {
  for (const { request, text, tokenIds } of answers) {
    const answer = await collect(client.generate(request));
    assert.deepEqual({ text: answer.text, tokenIds: answer.tokenIds }, { text, tokenIds });
    assert.equal(answer.events[0].event, 'started');
    const { usage } = answer.events.at(-1).completed;
    assert.equal(usage.numOutputTokens, tokenIds.length);
  }
});

test('every kind of field arrives', async () => {
  const seed = 2n ** 64n - 1n;
  const [first, ...rest] = (await collect(client.generate({
    chat: { messages: [{ role: 'user', content: 'é' }], templateOptions: { a: [1, null, { b: null }], d: true } },
    sampling: { seed, n: 2, logitBias: { 77: 100 }, temperature: 0.5 },
    stop: { maxTokens: 4, ignoreEos: true },
    output: { logprobs: 1, promptLogprobs: 1 },
  }))).events;
  assert.equal(first.started.seed, String(seed));
  const outputs = [[], []];
  for (const { delta } of rest.filter(({ event }) => event === 'delta')) {
    outputs[delta.index].push(...delta.tokenIds);
    assert.ok(delta.logprobs.every((entry) => entry.logprob <= 0 && entry.alternatives.length === 1));
  }
  assert.deepEqual(outputs, [Array(4).fill(77), Array(4).fill(77)]);
  assert.equal(rest.filter(({ finished }) => finished?.finishReason === 'FINISH_REASON_LENGTH').length, 2);
  assert.equal(rest.find(({ event }) => event === 'prompt').prompt.firstPosition, 1);
});

test('tokens come as text again, and the model is told', async () => {
  const tokenIds = await client.tokenize({ text: 'a b é' });
  assert.equal(await client.detokenize({ tokenIds }), 'a b é');
  const model = await client.getModel();
  assert.equal(model.vocabSize, 768);
  assert.equal(model.hasChatTemplate, true);
});

test('leaving the loop cancels the call and frees what it held', async () => {
  const before = await idle();
  for await (const { event } of client.generate(ENDLESS)) {
    if (event === 'delta') break;
  }
  const load = await idle();
  assert.equal(load.numFreeBlocks + load.numCachedBlocks, load.numTotalBlocks);
  assert.ok(load.numOutputTokens - before.numOutputTokens < FEW);
});

test('a signal cancels the call and its reason is thrown', async () => {
  const before = await idle();
  const controller = new AbortController();
  await assert.rejects(async () => {
    for await (const { event } of client.generate(ENDLESS, { signal: controller.signal })) {
      if (event === 'delta') controller.abort(new Error('enough'));
    }
  }, /enough/);
  const load = await idle();
  assert.ok(load.numOutputTokens - before.numOutputTokens < FEW);
  await assert.rejects(collect(client.generate(ENDLESS, { signal: controller.signal })), /enough/);
});

test('a deadline ends the call', async () => {
  await assert.rejects(collect(client.generate(ENDLESS, { timeoutSeconds: 0.3 })), (error) => {
    assert.ok(error instanceof ApiError);
    assert.equal(error.code, 'DEADLINE_EXCEEDED');
    return true;
  });
  await idle();
});

test('a timeout that is none is named', async () => {
  for (const timeoutSeconds of [0, -1, NaN, 'soon']) {
    await assert.rejects(client.getModel({ timeoutSeconds }), /^InvalidRequest: timeoutSeconds/);
    await assert.rejects(collect(client.generate(ENDLESS, { timeoutSeconds })), /^InvalidRequest: timeoutSeconds/);
  }
});

test('no timeout is too long', async () => {
  for (const timeoutSeconds of [1e12, Infinity]) assert.equal((await client.getModel({ timeoutSeconds })).vocabSize, 768);
});

test('what the server refuses names the field', async () => {
  const refusals = [
    ['sampling.top_p', { text: 'x', sampling: { topP: 2 } }],
    ['stop.strings[1]', { text: 'x', stop: { strings: ['a', ''] } }],
    ['stop.max_tokens', { text: 'x', stop: { maxTokens: 0 } }],
    ['prompt', {}],
  ];
  for (const [field, request] of refusals) {
    await assert.rejects(collect(client.generate(request)), (error) => {
      assert.ok(error instanceof ApiError);
      assert.equal(error.code, 'INVALID_ARGUMENT');
      assert.deepEqual(error.violations.map((violation) => violation.field), [field]);
      return true;
    });
  }
});

test('what protobuf would drop, wrap or round without a word is named before a call', async () => {
  const refusals = [
    ['stopp', { text: 'x', stopp: {} }],
    ['sampling.top_p', { text: 'x', sampling: { top_p: 0.5 } }],
    ['chat.messages[0].text', { chat: { messages: [{ role: 'user', text: 'x' }] } }],
    ['tokenIds', { text: 'x', tokenIds: { ids: [1] } }],
    ['sampling.temperature', { text: 'x', sampling: { temperature: 'hot' } }],
    ['stop.maxTokens', { text: 'x', stop: { maxTokens: 1.5 } }],
    ['stop.maxTokens', { text: 'x', stop: { maxTokens: [5] } }],
    ['text', { text: '\u{1f600}'.slice(0, 1) }],
    ['chat.templateOptions.a[0]', { chat: { messages: [], templateOptions: { a: ['\ud800'] } } }],
    ['priority', { text: 'x', priority: 2 ** 31 }],
    ['sampling.seed', { text: 'x', sampling: { seed: -1 } }],
    ['stop.strings', { text: 'x', stop: { strings: 'a' } }],
    ['stop.tokenIds[1]', { text: 'x', stop: { tokenIds: [1, 'a'] } }],
    ['sampling.logitBias', { text: 'x', sampling: { logitBias: [1] } }],
    ['sampling.logitBias[a]', { text: 'x', sampling: { logitBias: { a: 1 } } }],
    ['chat', { chat: [{ role: 'user', content: 'x' }] }],
    ['guided.grammar', { text: 'x', guided: { regex: 'a', grammar: 'b' } }],
  ];
  for (const [field, request] of refusals) {
    await assert.rejects(collect(client.generate(request)), (error) => {
      assert.ok(error instanceof InvalidRequest);
      assert.equal(error.message.split(': ')[0], field);
      return true;
    });
  }
});

test('a server that is not there is UNAVAILABLE', async () => {
  const nobody = new Client('127.0.0.1:1');
  await assert.rejects(nobody.getModel({ timeoutSeconds: 20 }), { code: 'UNAVAILABLE' });
  nobody.close();
});

test('the key goes with every call, over TLS', async () => {
  const { apiKey, tlsCa } = secured;
  const trusted = new Client(secured.address, { apiKey, tlsCa });
  const answer = await collect(trusted.generate({ text: 'x', stop: { maxTokens: 3 } }));
  assert.equal(answer.tokenIds.length, 3);
  await assert.rejects(trusted.getLoad(), { code: 'PERMISSION_DENIED' });
  for (const wrong of [undefined, 'nsk-wrong']) {
    const stranger = new Client(secured.address, { apiKey: wrong, tlsCa });
    await assert.rejects(collect(stranger.generate({ text: 'x' })), { code: 'UNAUTHENTICATED' });
    stranger.close();
  }
  trusted.close();
});

test('a limit says when to come back', async () => {
  const { apiKey, tlsCa } = secured;
  const limited = new Client(secured.address, { apiKey, tlsCa });
  for await (const { event } of limited.generate(ENDLESS)) {
    if (event !== 'delta') continue;
    await assert.rejects(collect(limited.generate({ text: 'x' })), (error) => {
      assert.equal(error.code, 'RESOURCE_EXHAUSTED');
      assert.ok(error.retryAfterSeconds > 0);
      return true;
    });
    break;
  }
  limited.close();
});

test('a key does not leave this machine in the clear', () => {
  assert.throws(() => new Client('10.0.0.1:1', { apiKey: 'k' }), /^InvalidRequest: apiKey/);
  assert.throws(() => new Client(address, { apiKey: 'two words' }), /^InvalidRequest: apiKey/);
  assert.throws(() => new Client(address, { tlsCa: '/no/such/file' }), /^InvalidRequest: tlsCa/);
  new Client('10.0.0.1:1', { apiKey: 'k', insecure: true }).close();
});

test('the example prints the answer', async () => {
  const script = fileURLToPath(new URL('../examples/generate.js', import.meta.url));
  const run = (...flags) => promisify(execFile)(process.execPath, [script, '--server', address, ...flags]);
  assert.equal((await run('--chat', 'What is 123 + 45?')).stdout, '168\n');
  await assert.rejects(run('--temperature=-1', 'x'), (error) => {
    assert.equal(error.code, 1);
    assert.match(error.stderr, /^sampling\.temperature: /);
    return true;
  });
});
