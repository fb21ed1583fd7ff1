"""OpenAI-compatible HTTP server.

app                 the ASGI application: routes, errors, worker thread
images_routes       POST /v1/images/generations and /v1/images/edits
chat_routes         POST /v1/chat/completions
context             state that routes share
request_schemas     request bodies
response_schemas    response bodies
openapi             the OpenAPI document
dispatcher          submits jobs and awaits results
batching            dynamic batching: a bounded queue and one worker thread
jobs                jobs, and the pipeline calls that serve several at once
image_output        images for clients
server_sent_events  streamed responses
metrics             Prometheus metrics
"""
