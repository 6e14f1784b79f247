/**
 * Shapes of options, requests and answers, for editors. What a field means is in protos/nanoserve/v1/inference.proto; what
 * is named here is compared with it by the tests.
 */

/**
 * @typedef {object} ClientOptions
 * @property {string} [apiKey] shown with every call
 * @property {string} [tlsCa] file of the certificates, in PEM, that may have signed the server's; without: no TLS
 * @property {string} [tlsCert] file of this client's own certificate
 * @property {string} [tlsKey] file of its key
 * @property {boolean} [insecure] whether a key may go to another machine without TLS
 */

/**
 * @typedef {object} CallOptions
 * @property {number} [timeoutSeconds] after which the call ends with DEADLINE_EXCEEDED, here and at the server
 * @property {AbortSignal} [signal] cancels the call, which then throws the signal's reason
 */

/**
 * @typedef {object} FieldViolation
 * @property {string} field its path in the request, as the proto writes it
 * @property {string} description
 */

/**
 * @typedef {object} GenerateRequest
 * @property {string} [requestId]
 * @property {string} [model]
 * @property {string} [text] one of `text`, `tokenIds` and `chat`
 * @property {{ids: number[]}} [tokenIds]
 * @property {Chat} [chat]
 * @property {SamplingParams} [sampling]
 * @property {StopParams} [stop]
 * @property {OutputParams} [output]
 * @property {GuidedParams} [guided]
 * @property {number} [priority]
 * @property {string} [cacheSalt]
 * @property {object} [resume]
 */

/**
 * @typedef {object} Chat
 * @property {{role: string, content: string}[]} messages
 * @property {Record<string, unknown>} [templateOptions]
 * @property {boolean} [addGenerationPrompt]
 */

/**
 * @typedef {object} SamplingParams
 * @property {number} [temperature]
 * @property {number} [topP]
 * @property {number} [topK]
 * @property {number} [minP]
 * @property {number} [repetitionPenalty]
 * @property {number} [frequencyPenalty]
 * @property {number} [presencePenalty]
 * @property {number | bigint | string} [seed]
 * @property {number} [n]
 * @property {Record<number, number>} [logitBias]
 */

/**
 * @typedef {object} StopParams
 * @property {number} [maxTokens]
 * @property {number} [minTokens]
 * @property {boolean} [ignoreEos]
 * @property {boolean} [includeStopInOutput]
 * @property {string[]} [strings]
 * @property {number[]} [tokenIds]
 */

/**
 * @typedef {object} OutputParams
 * @property {number} [logprobs]
 * @property {number} [promptLogprobs]
 */

/**
 * @typedef {object} GuidedParams
 * @property {string} [jsonSchema] one of these four
 * @property {string} [regex]
 * @property {{texts: string[]}} [choice]
 * @property {string} [grammar]
 */

/**
 * @typedef {object} GenerateResponse
 * @property {string} requestId
 * @property {string} seq
 * @property {'started' | 'prompt' | 'delta' | 'finished' | 'completed'} event which of the following is set
 * @property {GenerateStarted} [started]
 * @property {{firstPosition: number, logprobs: TokenLogprob[]}} [prompt]
 * @property {GenerateDelta} [delta]
 * @property {GenerateFinished} [finished]
 * @property {GenerateCompleted} [completed]
 */

/**
 * @typedef {object} GenerateStarted
 * @property {number} numPromptTokens
 * @property {number} numCachedTokens
 * @property {string} seed
 * @property {Buffer} promptDigest
 */

/**
 * @typedef {object} TokenLogprob
 * @property {number} tokenId
 * @property {number} logprob
 * @property {number} rank
 * @property {{tokenId: number, logprob: number}[]} alternatives
 */

/**
 * @typedef {object} GenerateDelta
 * @property {number} index
 * @property {string} text
 * @property {number[]} tokenIds
 * @property {TokenLogprob[]} logprobs
 */

/**
 * @typedef {object} GenerateFinished
 * @property {number} index
 * @property {'FINISH_REASON_STOP' | 'FINISH_REASON_LENGTH' | 'FINISH_REASON_ABORTED'} finishReason
 * @property {string} [stopString]
 * @property {number} [stopTokenId]
 */

/**
 * @typedef {object} GenerateCompleted
 * @property {Usage} usage
 * @property {Timing} timing
 */

/**
 * @typedef {object} Usage
 * @property {number} numPromptTokens
 * @property {number} numCachedTokens
 * @property {number} numOutputTokens
 * @property {number} numPreemptions
 */

/**
 * @typedef {object} Timing
 * @property {number} queueSeconds
 * @property {number} firstTokenSeconds
 * @property {number} totalSeconds
 */

/**
 * @typedef {object} TokenizeRequest
 * @property {string} [model]
 * @property {string} [text] one of `text` and `chat`
 * @property {Chat} [chat]
 */

/**
 * @typedef {object} DetokenizeRequest
 * @property {string} [model]
 * @property {number[]} [tokenIds]
 * @property {boolean} [skipSpecialTokens]
 */

export {};
