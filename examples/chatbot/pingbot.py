"""A chatbot with one line of conversation. Its functions block, if they like: they run in threads."""
# fmt: off


def open(handler):  # noqa: A001 - the name that the configuration gives
    print('Chatbot opened for', handler.session['id'])


def on_message(handler, message):
    print('Got message', message, 'for', handler.session['id'])
    handler.write_message('Got message: ' + message)


def on_close(handler):
    print('Chatbot closed for', handler.session['id'])
