"""Chat templates of language models, taught to read messages with images."""

# A message's parts become the one string that the template knows: images, each on a line, then its texts.
_PREAMBLE = (
    "{{%- set edge = namespace(messages=[]) -%}}"
    "{{%- for message in messages -%}}"
    "{{%- if message.content is string or message.content is none or message.content is undefined -%}}"
    "{{%- set edge.messages = edge.messages + [message] -%}}"
    "{{%- else -%}}"
    "{{%- set parts = namespace(text='') -%}}"
    "{{%- for part in message.content -%}}"
    "{{%- if part.type == 'image' -%}}{{%- set parts.text = parts.text + {image_token} + '\\n' -%}}"
    "{{%- elif part.text is defined -%}}{{%- set parts.text = parts.text + part.text -%}}{{%- endif -%}}"
    "{{%- endfor -%}}"
    "{{%- set edge.messages = edge.messages + [dict(message, content=parts.text)] -%}}"
    "{{%- endif -%}}"
    "{{%- endfor -%}}"
    "{{%- set messages = edge.messages -%}}"
)


def template_with_images(template: str, image_token: str) -> str:
    """A chat template that takes messages in parts, from one that takes them as strings.

    A template that speaks of images already is given back as it is.
    """
    if "image" in template:
        return template
    quoted = image_token.replace("\\", "\\\\").replace("'", "\\'")
    return _PREAMBLE.format(image_token=f"'{quoted}'") + template
