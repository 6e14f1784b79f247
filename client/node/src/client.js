/** A small client of `nanoserve.v1`, made from the protos at run time. */

import { AdminService, InferenceService } from './contract.js';
import { callMetadata, channelCredentials } from './credentials.js';
import { InvalidRequest, ProtocolError, fromCall } from './errors.js';
import { toMessage } from './messages.js';

export { ApiError, InvalidRequest, NanoserveError, ProtocolError } from './errors.js';

/** @typedef {import('./types.js').CallOptions} CallOptions */
/** @typedef {import('./types.js').ClientOptions} ClientOptions */
/** @typedef {import('./types.js').GenerateRequest} GenerateRequest */
/** @typedef {import('./types.js').GenerateResponse} GenerateResponse */
/** @typedef {import('./types.js').TokenizeRequest} TokenizeRequest */
/** @typedef {import('./types.js').DetokenizeRequest} DetokenizeRequest */

// More than gRPC can say ends the process.
const MAX_TIMEOUT_SECONDS = 1e9;
// Where an environment names a proxy for web pages, calls to this machine would go there too.
const CHANNEL_OPTIONS = { 'grpc.enable_http_proxy': 0 };

/** Calls one server; requests and answers are the contract's messages, with names in camelCase. */
export class Client {
  #inference;
  #admin;
  #metadata;

  /**
   * @param {string} address "host:port" or "unix:PATH"
   * @param {ClientOptions} [options]
   */
  constructor(address, options = {}) {
    this.#metadata = callMetadata(options.apiKey);
    const credentials = channelCredentials(address, options);
    this.#inference = new InferenceService(address, credentials, CHANNEL_OPTIONS);
    // Over the same connection.
    this.#admin = new AdminService(address, credentials, { channelOverride: this.#inference.getChannel() });
  }

  /**
   * Generates: `for await (const response of client.generate({ text: 'Hello' }))`. The call begins with the first
   * iteration; leaving the loop, or `signal`, cancels it, and the server then frees what it held.
   * @param {GenerateRequest} request
   * @param {CallOptions} [options]
   * @returns {AsyncGenerator<GenerateResponse, void, void>} `event` says which one of the events each response holds
   */
  async *generate(request, { timeoutSeconds, signal } = {}) {
    signal?.throwIfAborted();
    const message = toMessage('GenerateRequest', request);
    const call = this.#inference.Generate(message, this.#metadata, deadline(timeoutSeconds));
    call.on('error', () => {}); // of the cancellation below, which nobody waits for
    const cancel = () => call.cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    let numResponses = 0;
    let isComplete = false;
    try {
      for await (const response of call) {
        if (Number(response.seq) !== numResponses++) throw new ProtocolError(`response ${response.seq} is out of turn`);
        isComplete = response.event === 'completed';
        yield response;
      }
      if (!isComplete) throw new ProtocolError('the stream ended before `completed`');
    } catch (error) {
      signal?.throwIfAborted();
      throw fromCall(error);
    } finally {
      signal?.removeEventListener('abort', cancel);
      call.cancel();
    }
  }

  /** @param {TokenizeRequest} request @param {CallOptions} [options] @returns {Promise<number[]>} token ids */
  async tokenize(request, options) {
    return (await this.#ask(this.#inference, 'Tokenize', request, options)).tokenIds;
  }

  /** @param {DetokenizeRequest} request @param {CallOptions} [options] @returns {Promise<string>} text */
  async detokenize(request, options) {
    return (await this.#ask(this.#inference, 'Detokenize', request, options)).text;
  }

  /** @param {CallOptions} [options] @returns {Promise<object>} GetModelResponse: the model and its limits */
  getModel(options) {
    return this.#ask(this.#inference, 'GetModel', {}, options);
  }

  /** @param {CallOptions} [options] @returns {Promise<object>} Load: the load of this moment */
  async getLoad(options) {
    return (await this.#ask(this.#admin, 'GetLoad', {}, options)).load;
  }

  /** Closes the connection; calls under way go on to their ends. */
  close() {
    this.#inference.close();
  }

  /** @param {any} service @param {string} method @param {object} request @param {CallOptions} [options] */
  async #ask(service, method, request, { timeoutSeconds, signal } = {}) {
    signal?.throwIfAborted();
    const message = toMessage(`${method}Request`, request);
    let cancel = () => {};
    try {
      return await new Promise((resolve, reject) => {
        const settle = (error, response) => (error ? reject(error) : resolve(response));
        const call = service[method](message, this.#metadata, deadline(timeoutSeconds), settle);
        cancel = () => call.cancel();
        signal?.addEventListener('abort', cancel, { once: true });
      });
    } catch (error) {
      signal?.throwIfAborted();
      throw fromCall(error);
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }
}

/** @param {number | undefined} seconds */
function deadline(seconds) {
  if (seconds === undefined) return {};
  if (!(seconds > 0)) throw new InvalidRequest('timeoutSeconds: must be a positive number');
  return { deadline: Date.now() + Math.min(seconds, MAX_TIMEOUT_SECONDS) * 1000 };
}
