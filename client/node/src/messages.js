/** Plain objects to messages: what protobuf would drop, wrap or round without a word is refused. */

import { definitions } from './contract.js';
import { InvalidRequest } from './invalid_request.js';

const PACKAGE = 'nanoserve.v1';
const TYPES = { TYPE_STRING: 'string', TYPE_BOOL: 'boolean', TYPE_FLOAT: 'number', TYPE_DOUBLE: 'number' };
const RANGES = {
  TYPE_INT32: [-(2n ** 31n), 2n ** 31n - 1n],
  TYPE_UINT64: [0n, 2n ** 64n - 1n],
};
const oneofMembers = new Map();

/**
 * The message for a plain object with the contract's names in camelCase; null and undefined are as if absent. A
 * google.protobuf.Struct is given as an object, an integer also as a BigInt or as text.
 * @param {string} name of the request's type, without its package
 * @param {object} given
 * @returns {object}
 * @throws {InvalidRequest} naming the field
 */
export function toMessage(name, given) {
  return convert(`${PACKAGE}.${name}`, given, '');
}

function convert(name, given, path) {
  const { field: fields, nestedType: maps } = definitions[name].type;
  const made = {};
  for (const [key, value] of entries(given, path || name)) {
    const at = path ? `${path}.${key}` : key;
    const field = fields.find((each) => each.name === key);
    if (field === undefined) throw new InvalidRequest(`${at}: is no field of ${name}`);
    const map = maps.find((each) => each.name === field.typeName);
    made[key] = map === undefined ? convertField(field, value, at) : convertMap(map, value, at);
  }
  for (const members of oneofs(name)) {
    const [first, second] = members.filter((member) => member in made);
    // Of both the last to be written would arrive.
    if (second !== undefined) throw new InvalidRequest(`${path && `${path}.`}${second}: cannot be set beside ${first}`);
  }
  return made;
}

/** The names of the members of each oneof of a message type. The loader keeps them to itself, but answers by them. */
function oneofs(name) {
  if (!oneofMembers.has(name)) {
    const { serialize, deserialize, type } = definitions[name];
    const holding = type.field
      .filter((field) => field.label !== 'LABEL_REPEATED')
      .map((field) => [field.name, deserialize(serialize({ [field.name]: field.type === 'TYPE_MESSAGE' ? {} : 0 }))]);
    const membersOf = (oneof) => holding.filter(([member, held]) => held[oneof.name] === member);
    oneofMembers.set(name, type.oneofDecl.map((oneof) => membersOf(oneof).map(([member]) => member)));
  }
  return oneofMembers.get(name);
}

function convertField(field, value, at) {
  const inner = field.type === 'TYPE_MESSAGE' ? `${PACKAGE}.${field.typeName.split('.').at(-1)}` : undefined;
  if (inner === `${PACKAGE}.Struct`) return struct(value, at);
  const one = (each, where) => (inner === undefined ? scalar(field.type, each, where) : convert(inner, each, where));
  if (field.label !== 'LABEL_REPEATED') return one(value, at);
  if (!Array.isArray(value)) throw new InvalidRequest(`${at}: must be an array`);
  return value.map((each, index) => one(each, `${at}[${index}]`));
}

function convertMap(map, value, at) {
  const [{ type: keyType }, { type: valueType }] = map.field;
  const held = entries(value, at).map(([key, each]) => {
    const where = `${at}[${key}]`;
    return [scalar(keyType, key, where), scalar(valueType, each, where)];
  });
  return Object.fromEntries(held);
}

function scalar(type, value, at) {
  const range = RANGES[type];
  if (range === undefined) {
    if (type in TYPES && typeof value !== TYPES[type]) throw new InvalidRequest(`${at}: must be a ${TYPES[type]}`);
    return type === 'TYPE_STRING' ? text(value, at) : value;
  }
  const isText = typeof value === 'bigint' || typeof value === 'string';
  const isInteger = Number.isInteger(value) || (isText && /^-?\d+$/.test(String(value)));
  if (!isInteger || BigInt(value) < range[0] || BigInt(value) > range[1]) {
    throw new InvalidRequest(`${at}: must be an integer in [${range[0]}, ${range[1]}]`);
  }
  return String(BigInt(value));
}

/** Half of a character, as a cut leaves it, cannot travel. */
function text(value, at) {
  if (!value.isWellFormed()) throw new InvalidRequest(`${at}: holds half of a surrogate pair`);
  return value;
}

function struct(value, at) {
  const held = entries(value, at, [undefined]).map(([key, each]) => [text(key, at), json(each, `${at}.${key}`)]);
  return { fields: Object.fromEntries(held) };
}

function json(value, at) {
  if (value === null) return { nullValue: 'NULL_VALUE' };
  if (typeof value === 'boolean') return { boolValue: value };
  if (typeof value === 'number') return { numberValue: value };
  if (typeof value === 'string') return { stringValue: text(value, at) };
  if (typeof value !== 'object') throw new InvalidRequest(`${at}: is no JSON value`);
  if (!Array.isArray(value)) return { structValue: struct(value, at) };
  return { listValue: { values: value.map((each, index) => json(each, `${at}[${index}]`)) } };
}

/** What is set of an object. */
function entries(value, at, unset = [undefined, null]) {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new InvalidRequest(`${at}: must be an object`);
  }
  return Object.entries(value).filter(([, each]) => !unset.includes(each));
}
