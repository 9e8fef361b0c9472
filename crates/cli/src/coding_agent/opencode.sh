#!/bin/sh
# Written by Sandforge.
export OPENCODE_DISABLE_AUTOUPDATE=1
exec "${0%/bin/*}/package/bin/opencode" "$@"
