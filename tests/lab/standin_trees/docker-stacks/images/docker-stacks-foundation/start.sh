#!/bin/sh
# A stand-in.
exec "$@"
