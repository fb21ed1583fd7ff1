"""Server process and middleware, shared by the HTTP server and the web page.

server            the server process: port, signals, shutdown
middleware        Host check, API key, body limits, request ids, metrics
host_check        Host and Origin checks
admission         bounds on requests in flight and their bytes
connections       a bound on connections
uvicorn_protocol  HTTP protocol with time limits
request_body      the body of a request while it arrives
api_errors        errors in OpenAI's form
log_limits        logging that clients cannot flood
"""
