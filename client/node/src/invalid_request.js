/** The part of the tree in errors.js that needs no proto. */

/** Root of every error that this package throws on purpose. */
export class NanoserveError extends Error {
  get name() {
    return this.constructor.name;
  }
}

/** A field or option that cannot be sent; the message begins with its path. No call was made. */
export class InvalidRequest extends NanoserveError {}
