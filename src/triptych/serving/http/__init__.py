"""OpenAI-compatible HTTP server.

app                 ASGI application: routes, errors, worker thread
images_routes       POST /v1/images/generations and /v1/images/edits
chat_routes         POST /v1/chat/completions
context             shared state of the routes
request_schemas     request bodies
response_schemas    response bodies
openapi             OpenAPI document
dispatcher          submits jobs and awaits results
batching            dynamic batching: a bounded queue and one worker thread
jobs                jobs, and their execution in batches
image_output        image encoding
server_sent_events  streamed responses
metrics             Prometheus metrics
replicas            replicas of the server behind Ray Serve
"""
