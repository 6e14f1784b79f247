/** How a client shows who it is, and makes sure of whom it talks to. */

import { Metadata, credentials } from '@grpc/grpc-js';
import { readFileSync } from 'node:fs';
import { isIPv4, isIPv6 } from 'node:net';

import { InvalidRequest } from './invalid_request.js';

/**
 * Credentials of a channel. Beyond this machine a key goes only over TLS, unless `insecure` says that this is meant.
 * @param {string} address
 * @param {import('./types.js').ClientOptions} options
 * @returns {import('@grpc/grpc-js').ChannelCredentials}
 */
export function channelCredentials(address, { apiKey, tlsCa, tlsCert, tlsKey, insecure }) {
  if ((tlsCert === undefined) !== (tlsKey === undefined)) {
    throw new InvalidRequest(`${tlsCert === undefined ? 'tlsKey' : 'tlsCert'}: tlsCert and tlsKey go together`);
  }
  if (tlsCa !== undefined) {
    return credentials.createSsl(read('tlsCa', tlsCa), read('tlsKey', tlsKey), read('tlsCert', tlsCert));
  }
  if (tlsCert !== undefined) throw new InvalidRequest('tlsCert: needs tlsCa');
  if (apiKey !== undefined && !isLocal(address) && !insecure) {
    throw new InvalidRequest(`apiKey: would go to ${address} without TLS (tlsCa); insecure says that this is meant`);
  }
  return credentials.createInsecure();
}

/**
 * What goes with each call.
 * @param {string | undefined} apiKey
 * @returns {Metadata}
 */
export function callMetadata(apiKey) {
  const metadata = new Metadata();
  if (apiKey === undefined) return metadata;
  if (!/^[!-~]+$/.test(apiKey)) throw new InvalidRequest('apiKey: must be printable ASCII without spaces');
  metadata.set('authorization', `Bearer ${apiKey}`);
  return metadata;
}

/** Whether only this machine can reach `address`. */
function isLocal(address) {
  if (address.startsWith('unix:')) return true;
  const host = address.slice(0, address.lastIndexOf(':')).replace(/^\[|\]$/g, '');
  return host === 'localhost' || (isIPv4(host) && host.startsWith('127.')) || (isIPv6(host) && host === '::1');
}

function read(name, path) {
  if (path === undefined) return undefined;
  try {
    return readFileSync(path);
  } catch (error) {
    throw new InvalidRequest(`${name}: ${path}: not readable (${error.code})`);
  }
}
