/** The contract as the repository's .proto files have it: services to call, and message types. */

import { loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { fileURLToPath } from 'node:url';

const FOLDERS = ['../../../protos', '.'].map((path) => fileURLToPath(new URL(path, import.meta.url)));
/**
 * Message types by full name. Field names are in camelCase, 64-bit integers strings, enums their names.
 * @type {Record<string, any>}
 */
export const definitions = loadSync(
  ['nanoserve/v1/inference.proto', 'nanoserve/v1/admin.proto', 'status.proto'],
  { includeDirs: FOLDERS, oneofs: true, defaults: true, longs: String, enums: String },
);
const loaded = /** @type {any} */ (loadPackageDefinition(definitions));
export const { InferenceService, AdminService } = loaded.nanoserve.v1;

/**
 * Reads a message.
 * @param {string} name the full name of its type
 * @param {Buffer} bytes
 */
export function decode(name, bytes) {
  return definitions[name].deserialize(bytes);
}
