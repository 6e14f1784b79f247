#!/usr/bin/env node
/** Streams the continuation of a prompt: node examples/generate.js --chat "What is 123 + 45?" */

import { parseArgs } from 'node:util';

import { Client, NanoserveError } from '../src/client.js';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    server: { type: 'string', default: '127.0.0.1:50051' },
    chat: { type: 'boolean', default: false },
    temperature: { type: 'string' },
    'max-tokens': { type: 'string' },
    timeout: { type: 'string' },
    'tls-ca': { type: 'string' },
  },
});
const [prompt] = positionals;
if (prompt === undefined) {
  const usage = '[--server ADDR] [--chat] [--temperature X] [--max-tokens N] [--timeout SECONDS] [--tls-ca F] PROMPT';
  console.error(`usage: generate.js ${usage}`);
  process.exit(2);
}
const number = (text) => (text === undefined ? undefined : Number(text));
const interrupt = new AbortController();
process.once('SIGINT', () => interrupt.abort(new Error('interrupted')));

try {
  const client = new Client(flags.server, { apiKey: process.env.NANOSERVE_API_KEY, tlsCa: flags['tls-ca'] });
  const request = {
    ...(flags.chat ? { chat: { messages: [{ role: 'user', content: prompt }] } } : { text: prompt }),
    sampling: { temperature: number(flags.temperature) },
    stop: { maxTokens: number(flags['max-tokens']) },
  };
  const options = { timeoutSeconds: number(flags.timeout), signal: interrupt.signal };
  for await (const { event, delta } of client.generate(request, options)) {
    if (event === 'delta') process.stdout.write(delta.text);
  }
  process.stdout.write('\n');
  client.close();
} catch (error) {
  if (!(error instanceof NanoserveError) && !interrupt.signal.aborted) throw error;
  console.error(error.message);
  process.exit(1);
}
