/**
 * What goes wrong, in one tree.
 *
 *     NanoserveError
 *     ├── InvalidRequest   a field or option that cannot be sent; no call was made
 *     ├── ProtocolError    the server broke the contract
 *     └── ApiError         a call failed; `code` is the name of its gRPC status code
 */

import { status } from '@grpc/grpc-js';

import { decode } from './contract.js';

export { InvalidRequest, NanoserveError } from './invalid_request.js';
import { NanoserveError } from './invalid_request.js';

/** The server broke the contract, or speaks a newer one. */
export class ProtocolError extends NanoserveError {}

/** A call failed. */
export class ApiError extends NanoserveError {
  /**
   * @param {string} code name of the gRPC status code, such as "INVALID_ARGUMENT"
   * @param {string} message
   * @param {import('./types.js').FieldViolation[]} violations the fields at fault
   * @param {number | undefined} retryAfterSeconds when to come back, where the server said
   */
  constructor(code, message, violations = [], retryAfterSeconds = undefined) {
    super(message);
    this.code = code;
    this.violations = violations;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/**
 * What to throw for what a call threw: its ApiError, or the same where gRPC did not make it.
 * @param {any} error
 * @returns {any}
 */
export function fromCall(error) {
  if (typeof error?.code !== 'number' || error.metadata === undefined) return error;
  const [trailer] = error.metadata.get('grpc-status-details-bin');
  const details = trailer === undefined ? [] : decode('google.rpc.Status', trailer).details;
  const violations = unpack(details, 'google.rpc.BadRequest').flatMap((bad) => bad.fieldViolations);
  const [delay] = unpack(details, 'google.rpc.RetryInfo').map((info) => info.retryDelay);
  const seconds = delay && Number(delay.seconds) + delay.nanos * 1e-9;
  return new ApiError(status[error.code], error.details, violations, seconds);
}

/** The messages of one type among the details. */
function unpack(details, name) {
  return details.filter((any) => any.type_url.endsWith(`/${name}`)).map((any) => decode(name, any.value));
}
