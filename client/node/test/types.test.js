/** The typedefs name what the contract has. */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { definitions } from '../src/contract.js';

const source = readFileSync(new URL('../src/types.js', import.meta.url), 'utf8');
const typedefs = source.split('@typedef {object} ').slice(1).map((text) => ({
  name: text.match(/^\w+/)[0],
  properties: [...text.matchAll(/@property \{.*\} \[?(\w+)/g)].map(([, name]) => name),
}));
const OWN = ['ClientOptions', 'CallOptions', 'FieldViolation'];

test('each typedef has the fields of its message', () => {
  const messages = typedefs.filter(({ name }) => !OWN.includes(name));
  assert.ok(messages.length > 10);
  for (const { name, properties } of messages) {
    const fields = definitions[`nanoserve.v1.${name}`].type.field.map((field) => field.name);
    assert.deepEqual(properties.filter((property) => property !== 'event').sort(), fields.sort(), name);
  }
});
