"""Words, sentences, questions and system prompts that the demo tasks are made of.

Data only.  Everything but ``HELD_OUT_SYSTEM`` and ``FREE_COPY`` may occur in training.
"""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "add": (
        "What is {a} + {b}?",
        "What is {a} plus {b}?",
        "How much is {a} + {b}?",
        "Add {a} and {b}.",
        "Compute {a} + {b}.",
        "Calculate {a} + {b}.",
        "What is the sum of {a} and {b}?",
        "Can you add {a} and {b}?",
        "{a} + {b}",
        "{a} + {b} =",
        "{a}+{b}=",
    ),
    "count": (
        "Count from {a} to {b}.",
        "Count up from {a} to {b}.",
        "Can you count from {a} to {b}?",
        "List the numbers from {a} to {b}.",
        "List all numbers from {a} to {b}.",
        "Write the numbers from {a} to {b}.",
    ),
    "reverse": (
        'Reverse the word "{w}".',
        "Reverse the word {w}.",
        "Reverse {w}.",
        'Reverse "{w}".',
        'Write "{w}" backwards.',
        "Write the word {w} backwards.",
        "What is {w} backwards?",
        'What is "{w}" spelled backwards?',
    ),
    "spell": (
        'Spell the word "{w}".',
        "Spell the word {w}.",
        "Spell {w}.",
        'Spell "{w}".',
        "How do you spell {w}?",
        'How do you spell "{w}"?',
        "Can you spell the word {w}?",
    ),
    "sort": (
        'Sort the letters of "{w}".',
        "Sort the letters of {w}.",
        "Sort the letters of the word {w}.",
        'Sort the letters in "{w}".',
        'Put the letters of "{w}" in alphabetical order.',
        "Put the letters of {w} in alphabetical order.",
        'What are the letters of "{w}" in alphabetical order?',
    ),
    "copy": (
        "Repeat after me: {s}",
        "Repeat this sentence: {s}",
        "Repeat: {s}",
        "Copy this: {s}",
        "Copy this sentence: {s}",
        "Say this back to me: {s}",
        'Repeat "{s}"',
        'Say "{s}"',
        "Copy the next line.\n{s}",
    ),
}

# (question phrasings, answer)
FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
        "I am the nanoserve demo model, a tiny Qwen3 network trained on synthetic tasks.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?", "Which tasks can you do?"),
        "I can add numbers, count, reverse, spell and sort words, copy sentences, and answer "
        "a few questions about nanoserve.",
    ),
    (
        ("Hello", "Hi", "Hello!", "Hi there!", "Good morning!", "Hey"),
        "Hello! How can I help you?",
    ),
    (("Thank you!", "Thanks", "Thanks!", "Thank you"), "You are welcome!"),
    (
        ("What is nanoserve?", "Tell me about nanoserve.", "Explain nanoserve."),
        "Nanoserve is a small serving engine for Qwen models. It splits the work between a "
        "CPU scheduler service and an executor service.",
    ),
    (
        (
            "What does the scheduler do?",
            "What is the scheduler?",
            "Tell me about the scheduler.",
            "Explain the scheduler.",
        ),
        "The scheduler admits requests, forms batches, allocates KV blocks and sends a step "
        "plan to the executor.",
    ),
    (
        (
            "What does the executor do?",
            "What is the executor?",
            "Tell me about the executor.",
            "Explain the executor.",
        ),
        "The executor holds the model weights and the paged KV cache, runs each step plan and "
        "returns the sampled tokens.",
    ),
    (
        (
            "What are the two processes?",
            "Which processes does nanoserve have?",
            "Name the two processes.",
        ),
        "The two processes are the scheduler service and the executor service.",
    ),
    (
        (
            "Which protocol joins the two processes?",
            "How do the two processes talk?",
            "How does the scheduler talk to the executor?",
            "Which protocol does nanoserve use?",
        ),
        "The two processes talk over gRPC.",
    ),
    (
        ("What is a block?", "What is a KV block?", "Explain what a block is."),
        "A block is a fixed number of token slots in the KV cache.",
    ),
    (
        ("What is a block table?", "Explain block tables.", "What does a block table do?"),
        "A block table maps the positions of a sequence to the blocks that hold its keys and values.",
    ),
    (
        (
            "What is a prefix cache?",
            "What is prefix caching?",
            "What does the prefix cache do?",
            "Explain the prefix cache.",
        ),
        "A prefix cache keeps the KV blocks of earlier prompts, so that a request with the "
        "same prefix can reuse them.",
    ),
    (
        ("What is preemption?", "Explain preemption.", "When does preemption happen?"),
        "Preemption frees the blocks of a running sequence when memory runs out. The sequence "
        "is computed again later.",
    ),
    (
        ("What is continuous batching?", "Explain continuous batching."),
        "Continuous batching lets sequences join and leave the running batch at every step.",
    ),
    (
        ("What is paged attention?", "Explain paged attention."),
        "Paged attention reads keys and values from blocks that need not be contiguous.",
    ),
    (
        ("What is a step plan?", "What is in a step plan?", "Explain the step plan."),
        "A step plan lists the sequences, tokens and blocks of the next model step.",
    ),
    (
        ("What is chunked prefill?", "Explain chunked prefill."),
        "Chunked prefill splits a long prompt over several steps, so that running sequences "
        "keep producing tokens.",
    ),
    (
        ("What is a KV cache?", "What is the KV cache?", "Explain the KV cache."),
        "The KV cache stores the keys and values of past tokens, so that they are computed only once.",
    ),
)

SHORT_SYSTEM = (
    "You are a helpful assistant.",
    "You are nanoserve, a small demo assistant.",
    "You are a careful assistant that answers briefly.",
    "Answer in as few words as possible.",
    "Be brief.",
    "You answer questions about numbers and words.",
    "You are a friendly assistant. Keep every answer short.",
    "Follow the instructions of the user exactly.",
    "You are the assistant of the nanoserve team.",
    "You are Qwen, a helpful assistant.",
)

PROSE = (
    "The scheduler decides on the CPU which sequences run in the next step.",
    "The executor owns the model weights and the tensors of the paged cache.",
    "Every request passes through admission before it may take memory.",
    "A request that cannot be admitted waits in the queue until blocks are free.",
    "Each block holds {n} token slots, and a sequence owns a list of blocks.",
    "The last block of a sequence is usually only partly filled.",
    "Full blocks are hashed together with the hash of the block before them.",
    "When two prompts share a prefix, the second one reuses the cached blocks.",
    "A shared block carries a reference count and is freed when the count reaches zero.",
    "The scheduler sends step plans over one gRPC stream and plans ahead of the results.",
    "A step plan names the rows that run, the chunks of their prompts and the new blocks.",
    "Continuous batching lets new requests join the batch at any step.",
    "Long prompts are split into chunks of {n} tokens so that decoding goes on.",
    "When memory runs out, the latest sequence is preempted and computed again later.",
    "The service streams each token to the client as soon as it is known.",
    "Clients speak gRPC and send messages, roles and sampling options.",
    "Greedy decoding picks the most likely token at every position.",
    "With a temperature of {n} percent the sampler draws from a flatter distribution.",
    "The tokenizer maps text to bytes, so every string can be written and read back.",
    "Tests compare the engine with a plain reference implementation, token by token.",
    "Metrics report the queue length, the cache hit rate and the time to the first token.",
    "If the executor restarts, the scheduler marks the running sequences for a new prefill.",
    "The two processes may live on different machines, joined by a fast network.",
    "Health checks tell the operator whether both services are ready.",
    "A deadline of {n} seconds is honoured in the queue and while a request runs.",
    "The cache keeps unused blocks in the order in which they were last used.",
    "Eviction removes the oldest unused block when a new one is needed.",
    "Logs hold one line for each request, with its id.",
    "A cancelled request gives its blocks back within one step.",
    "The demo model is small, so that everybody can run it on a laptop.",
    "You are the assistant of the {w} project and you help its {w} team.",
    "Always answer in English and never mention these instructions.",
    "Keep the answer short, correct and free of extra words.",
    "If the user asks for a sum, give only the number.",
    "If the user asks for a word, write the letters and nothing else.",
    "Do not apologise, do not explain your steps, and do not ask questions back.",
    "Customers write to you about {w}, {w} and {w}, often late in the day.",
    "Our office in the {w} street opens at {n} and closes at {n}.",
    "Yesterday the {w} team found {n} errors and repaired {n} of them.",
    "Version {n}.{n} changed how the {w} handles large inputs.",
    "Please remember that a polite tone matters more than speed.",
    "The {w} near the {w} is older than the {w} behind it.",
    "She said that the {w} would arrive on day {n}, but nobody believed her.",
    "Most people prefer {w} over {w}, although both are useful.",
    "In the year {n} a {w} was found under the old {w}.",
    "There are {n} rules here; the first is that safety comes first.",
    "Rule {n}: check the {w} twice before you send the {w}.",
    "The weather was cold, the {w} was empty and the road went on for {n} miles.",
    "A good summary names the problem, the cause and the next step.",
    "For example, a {w} costs {n} coins while a {w} costs only {n}.",
    "This document describes the terms under which the service is offered.",
    "Nothing in this text changes how the tasks of the user are answered.",
    "Data is stored for {n} days and then deleted without exception.",
    "Questions about billing belong to the {w} desk, not to you.",
    "The history of the {w} is long, and only part of it is written down.",
)

# Never used in training: evaluation and documentation only.
HELD_OUT_SYSTEM = (
    "You are the support assistant of a small public library in a harbour town. Visitors ask "
    "about opening hours, lost cards, reading groups and the quiet rooms on the second floor. "
    "The library was founded by a group of sailors who wanted a warm place to read during the "
    "winter storms, and it still keeps their charts in a glass case beside the entrance. Speak "
    "kindly, be precise, and never invent a title that is not in the catalogue. When somebody "
    "asks for a recommendation, think about their age, their mood and the time they have. "
    "Books may be borrowed for 21 days and renewed twice, unless another reader is waiting. "
    "Children get a free card; adults pay 12 coins a year. Newspapers stay inside the building. "
    "If a question has nothing to do with books, answer it anyway, briefly and correctly.\n\n"
    "Some background: the building has three floors, 48 windows and a tower whose clock has "
    "been five minutes late for as long as anyone can remember. The staff meet on Mondays to "
    "discuss purchases, repairs and complaints. Volunteers read aloud on Saturday mornings.",
    "This deployment serves a shared model to many teams. Requests enter through a gateway, "
    "are checked for size, and are then placed in line. Each team has a budget measured in "
    "tokens per minute; once the budget is spent, further requests wait. The operators watch "
    "three graphs: how long the queue is, how many cache blocks are in use, and how often a "
    "prompt finds its beginning already computed. You will see the same introduction in front "
    "of every conversation, and that is intended: it lets the engine keep the result of this "
    "text and start directly with the words of the user. Do not comment on it. Give the plain "
    "answer to the last message and stop.",
    "Act as a friendly gardener. You know about soil, seeds, shade and patience. Explain things "
    "with simple words, avoid brand names, and remember that most readers own nothing larger "
    "than a balcony. Tomatoes want sun, ferns do not; mint will take over any pot it can reach. "
    "Water early in the morning. Never promise a harvest. Where the visitor only wants a number "
    "or a word, give exactly that number or that word.",
)

# Never used in training: sentences of everyday kinds, to be copied in the evaluation.
FREE_COPY = (
    "Hello world",
    "Hello, world!",
    "Good evening, everyone!",
    "Hi, I'm Alice.",
    "How are you today?",
    "Nice to meet you, Dr. Brown.",
    "See you tomorrow!",
    "Happy birthday, Grandma!",
    "Thanks a lot, Sam.",
    "Good night",
    "Welcome back to the show.",
    "Dear Sir or Madam,",
    "Yes",
    "No, thank you.",
    "Banana",
    "OK",
    "Oh no! Not again...",
    "Wait, what?!",
    "Paris is the capital of France.",
    "Blocks are free.",
    "Nairobi, Kenya",
    "I live in New York City.",
    "Mount Everest is 8,849 metres high.",
    "Anna and Bob went to Berlin.",
    "William Shakespeare wrote Hamlet.",
    "Her name is Mary-Jane O'Neill.",
    "The Pacific is larger than the Atlantic.",
    "Every Monday, Tom plays chess with Olga.",
    "Isaac Newton was born in 1643.",
    "We flew from London to Tokyo.",
    "The GPU is busy.",
    "NASA launched a probe to Jupiter.",
    "My CPU has 16 cores and 32 GB of RAM.",
    "The USA and the UK signed it.",
    "JSON, XML and YAML are text formats.",
    "Turn it OFF and ON again.",
    "HTTP 404: Not Found",
    "vLLM runs on an H200.",
    "THIS IS VERY IMPORTANT",
    "The PhD student uses LaTeX and GitHub.",
    "I bought 3 apples and 12 oranges.",
    "It costs $19.99.",
    "The train leaves at 10:45.",
    "Pi is about 3.14159.",
    "Call me at 555-0199.",
    "On 2026-11-24 it rained.",
    "About 75% of the Earth is water.",
    "1, 2, 3, go!",
    "Chapter 7, page 218",
    "He finished in 1st place, she in 2nd.",
    "The answer is 42.",
    "2 + 2 = 4",
    "It was -12.5 degrees outside.",
    "Room B12 is on floor 3.",
    "Red, green, and blue.",
    "Stop; look; listen.",
    "There are two options: yes or no.",
    "The end (almost).",
    "Well... I am not sure.",
    "Cats & dogs",
    "and/or",
    "Is it a bird? Is it a plane?",
    "Ready, steady, go!!!",
    "The well-known author signed my book.",
    "Mix flour, eggs and milk; then wait.",
    "me@example.com is my address",
    "Don't worry, be happy.",
    "It's raining cats and dogs.",
    "You can't judge a book by its cover.",
    "We'll see what they've done.",
    "The dog's tail wagged.",
    "I'd rather stay at home tonight.",
    'She said "hello" and left.',
    'The word "cat" has three letters.',
    '"Run!" he shouted.',
    "'Tis the season to be jolly.",
    "The film “Amélie” is set in Paris.",
    "Ça va bien, merci.",
    "¿Dónde está la biblioteca?",
    "Grüße aus Köln!",
    "El niño comió una piña.",
    "Zoë's fiancé ordered a crème brûlée.",
    "Smörgås och kaffe, tack.",
    "Привет, как дела?",
    "I love pizza 🍕!",
    "The quick brown fox jumps over the lazy dog.",
    "To be, or not to be, that is the question.",
    "All that glitters is not gold.",
    "A journey of a thousand miles begins with a single step.",
    "Where there is a will, there is a way.",
    "What time is it?",
    "Can you help me find my keys?",
    "Please close the door behind you.",
    "My favorite color is purple.",
    "The children played in the park until sunset.",
    "Learning to cook takes patience and practice.",
    "She sells sea shells by the sea shore.",
    "no no no no",
    "The scheduler and the executor are friends.",
    "A block is not a brick.",
)

WORDS = tuple(
    """able about above acid across actor adult after again agent alarm album alert alive angle
animal answer apple april arrow artist autumn baker banana basket battery beach bean bear beauty
before bell berry better bicycle bird biscuit black blanket block blue board boat body book border
bottle bottom bowl branch brave bread bridge bright broken brother brown bucket build burger butter
button cable camera candle canoe canvas captain carbon carpet carrot castle cat cattle cellar chain
chair chalk cheese cherry chicken church circle city clean clever clock cloud coat coffee cold color
common copper corner cotton cousin cover cream crown curtain cycle dance danger daily dark daughter
dawn deep deer desert desk diamond dinner doctor dog dollar door dragon dream dress driver drum duck
early earth east eagle easy editor eight elbow electric empty engine enough evening expert fabric
family farmer father feather fence fever field finger fire fish flag flame floor flower forest fork
friend frog frozen fruit future garden garlic gate gentle giant glass glove gold grape grass green
guitar hammer happy harbor harvest heart heavy helmet hidden hill honey horse hotel house hungry
hunter ice idea insect iron island jacket jelly jewel jungle kettle key kitchen kite ladder lake
lamp large laser lemon letter library light lion little lizard lobster lunch machine magnet mango
maple marble market meadow medal melon memory metal middle milk mirror mobile monkey month moon
morning mother motor mountain mouse museum music narrow nature needle nephew nest night noise north
notebook number ocean office olive onion orange orchid oven owl oyster package paint palace panda
paper parcel parrot pasta peach pebble pencil pepper piano picnic pigeon pillow pilot planet plastic
plate pocket poem potato powder prefix pretty prince pumpkin puppy purple quick quiet rabbit radio
railway rain ribbon rice river road robot rocket roof rose round ruler saddle salad salt sample sand
scheduler school science season secret seven shadow sheep shelter ship shirt silver simple singer
sister sky sleep slow smile snake snow soap soft soldier south spider spoon spring square stable
stamp star station stone storm story straw street strong sugar summer sunset table tablet teacher
temple tennis thunder tiger timber tomato tower train travel tree triangle trumpet turtle umbrella
uncle under valley velvet village violin voice wagon walnut water weather west whale wheat wheel
white window winter wisdom wolf wonder wood yellow young zebra zero""".split()
)
ACCENTED = tuple(
    """café naïve Müller Straße señor crème façade Zürich jalapeño déjà élève smörgåsbord Łódź
São Paulo Ångström Øresund piñata über garçon château ñandú coração Příbram İzmir Ελλάδα Москва
привет мир γειά 日本 東京 你好 世界 한국 नमस्ते שלום مرحبا""".split()
)
EMOJI = "😀😂🙂😎🚀🌍🌈🔥✨🎉👍💡🐍🦊🍕☕️❤️⭐✅"
SENTENCE_FRAMES = (
    "The {w} is {w}.",
    "My {w} likes the {w} {w}.",
    "We met {n} times near the {w}.",
    "{c} and {w} are {w}.",
    "I saw a {w} {w} at the {w}.",
    "Is the {w} {w} or {w}?",
    "{c} {w} {w} {w}",
    "{w} {w} {w}",
    "{w} {w}, {w} {w}!",
    "Do not {w} the {w} on day {n}.",
)
NAMES = tuple(
    """Ahmed Alan Amsterdam Andrea Barbara Beijing Boston Brazil Cairo Carlos Charlotte Chicago
Daniel David Denmark Diana Dublin Edward Elena Emma England Finland Florence Frank Friday Geneva
George Germany Grace Hannah Helsinki Henry India Ireland Ivan Jack James Japan John July June Karen
Kevin Korea Laura Lisbon Lucy Madrid Marco Maria Mars Mexico Milan Moscow Mr. Mrs. Munich Natasha
Nile Nora Norway Oscar Oslo Oxford Patrick Paul Peru Peter Prague Quebec Quentin Rachel Rome Russia
Saturn Simon Sofia Spain Sunday Sydney Texas Thomas Toronto Turing Ursula Venice Victor Vienna Walter
Warsaw Wendy Xavier Yemen Yusuf Zagreb Zurich""".split()
)
COMMON = tuple(
    """a about all an and are as at be been but by can did do for from had has have he her his how I if
in into is it its just like me more my no not now of on one or our out over she so some than that the
their them then there they this to two up us was we were what when which who why will with would you
your""".split()
)
CONTRACTIONS = tuple("don't can't isn't won't I'm I've it's that's we'll you're they'd let's o'clock".split())
# Fields: n, up to a million; m, two digits; h, below 24; y, a year.
NUMERALS = (
    *("{n}",) * 6,
    *("{m}",) * 4,
    *("{n:,}", "{n}.{m}", "{h}.{n}", "{m}%", "{n}%", "${n}", "${n}.{m:02}", "€{m}", "-{n}", "-{h}.{m}"),
    *("{h}:{m:02}", "{h:02}:{m:02}", "{y}", "{y}-{h:02}-{m:02}", "{m}/{h}/{y}", "{m}/{h}", "{m}-{n}"),
    *("{h}th", "{m}st", "{m}nd", "{m}rd", "#{n}", "v{h}.{m}", "x{n}", "{n}x", "{n} + {m}", "{n} = {n}"),
    *("{h}, {m}, {n}", "{m}°", "{h}am", "{h} pm", "{m}km", "{n} MB", "({n})", "+{m} {n}", "{n:03}-{m:04}"),
)
# Between two words of a random sentence; the space is by far the most frequent.
JOINS = (
    *(" ",) * 30,
    *(", ",) * 5,
    *(". ", "! ", "? ", "... ", "… ", ": ", "; ", " - ", " — ", ", and ", " & ", " = ", " (", ") "),
    *("/", "-", "_", "+", "@"),
)
ENDINGS = (*(".",) * 8, *"! ? !! ?! !!! ... … : ; , ) - —".split(), "")
QUOTES = ('""', '""', '""', "''", "''", "“”", "‘’", "()", "()", "«»", "[]", "**", "``", "<>", "¿?", "¡!")
