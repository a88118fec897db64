"""What a judge is asked. A change here changes VERSION: decisions made under other words are not taken over."""

VERSION = 1

SHORTEN = """Here is a question and what somebody answered to it.

Question: {question}
Answer: {answer}

What does the answer come to? Reply with JSON and nothing else: {{"answer": "..."}} with a single word or a short
phrase, without explanation. If several answers are given, take the last one. If it does not answer the question at all,
reply {{"answer": null}}."""

SAME = """Here is a question and two answers to it.

Question: {question}
First answer: {first}
Second answer: {second}

Do both answers mean the same, as answers to this question? Other spellings, abbreviations and units of one value are
the same; a more general or more special answer is not. Reply with JSON and nothing else: {{"same": true}} or
{{"same": false}}."""

REMINDER = "\n\nReply with the JSON object alone, in exactly the form asked for."
