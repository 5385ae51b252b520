"""Chat templates in the manner of models' own, each with what it does that is hard to learn answers from."""

# Marks turns with tokens of its own, and puts a begin token before all.
LLAMA_LIKE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|head|>' + message['role'] + '<|/head|>\n\n' + message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)

# Takes no system turn, calls the assistant otherwise, and strips.
GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|head|>' + role + '\n' + message['content'] | trim + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>model\n' }}{% endif %}"
)

# Has no generation prompt, puts the system text before the last user turn's, and ends answers alone.
MISTRAL_LIKE = (
    "{{ bos_token }}{% set told = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
    "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ told + '\n\n' if told and message is sameas asked[-1] else '' }}{{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'].strip() }}{{ eos_token }}{% endif %}{% endfor %}"
)

# Keeps the thought of answers behind the last question, opens one for the last, and takes it out of those before.
QWEN_LIKE = (
    "{% set place = namespace(last=0) %}"
    "{% for message in messages %}{% if message.role == 'user' and not message.content.startswith('<result>') %}"
    "{% set place.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% set said = message.content %}{% set thought = '' %}"
    "{% if message.role == 'assistant' and '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|head|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.index0 > place.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}{% else %}{{ said }}{% endif %}"
    "{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant\n' }}{% endif %}"
)

# Asks with an opened thought, and has none in any answer.
DEEPSEEK_LIKE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set said = message['content'] %}"
    "{% if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<|bot|>' + said + eos_token }}{% else %}{{ '<|user|>' + message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|bot|><think>\n' }}{% endif %}"
)

# Asks with an opened thought, and an answer without one is told by a closed one.
SWITCHED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|bot|></think>' + message['content'] + eos_token }}{% else %}{{ '<|user|>' + message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|bot|><think>' }}{% endif %}"
)

# Asks with a new line that its answers do not begin with.
OTHER_SPACE = (
    "{% for message in messages %}<|head|>{{ message['role'] }} {{ message['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)

# Numbers its turns.
NUMBERED = (
    "{% for message in messages %}<|head|>{{ loop.index }} {{ message['role'] }}: {{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>{{ messages | length + 1 }} assistant: {% endif %}"
)

# Ends no answer.
UNENDED = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
