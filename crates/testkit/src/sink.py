"""sink.py http|smtp PORT FOLDER [CERTIFICATE KEY]: writes what is sent to it into FOLDER."""

import email
import email.policy
import http.server
import json
import os
import ssl
import sys
import threading
import time

kind, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tls = None
if len(sys.argv) > 4:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(sys.argv[4], sys.argv[5])
lock = threading.Lock()
count = 0


def take(document):
    global count
    with lock:
        count += 1
        name = os.path.join(folder, f"{count:06}")
        with open(name, "w") as file:
            json.dump(document, file)
        os.rename(name, name + ".json")


def answer(usual):
    try:
        with open(os.path.join(folder, "answer")) as file:
            code = int(file.read())
    except FileNotFoundError:
        return usual
    if code == 0:
        time.sleep(600)
    return code


class Http(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        take({"path": self.path, "headers": headers, "body": body.decode()})
        self.send_response(answer(204))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Smtp:
    async def handle_DATA(self, server, session, envelope):
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        take(
            {
                "from": envelope.mail_from,
                "to": envelope.rcpt_tos,
                "subject": str(mail["subject"]),
                "text": mail.get_content(),
                "headers": {name.lower(): str(value) for name, value in mail.items()},
                "defects": [str(defect) for defect in mail.defects],
                "user": session.auth_data,
                "tls": session.ssl is not None,
            }
        )
        code = answer(250)
        return f"{code} told so"


def authenticate(server, session, envelope, mechanism, data):
    from aiosmtpd.smtp import AuthResult

    good = data.login == b"me" and data.password == b"secret"
    return AuthResult(success=good, handled=False, auth_data=data.login.decode())


def ready():
    with open(os.path.join(folder, "ready"), "w"):
        pass


def serve_http():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Http)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def serve_smtp():
    from aiosmtpd.controller import Controller

    more = {}
    if tls:
        more = dict(tls_context=tls, require_starttls=True, auth_required=True, authenticator=authenticate)
    Controller(Smtp(), hostname="127.0.0.1", port=port, **more).start()


serve_http() if kind == "http" else serve_smtp()
ready()
# Whoever started this has gone when its end of the pipe has.
sys.stdin.read()
os._exit(0)
