"""Server process and middleware, shared by the HTTP server and the web page.

server            server process: port, signals, shutdown
middleware        Host check, API key, body limits, request ids, metrics
host_check        Host and Origin checks
admission         limits of requests in flight and of their memory
connections       limit of connections
uvicorn_protocol  HTTP protocol with time limits
request_body      request body as it arrives
api_errors        errors in OpenAI's format
log_limits        rate limits of log messages
"""
