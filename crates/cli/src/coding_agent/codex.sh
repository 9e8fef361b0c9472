#!/bin/sh
# Written by Sandforge. The key that the agent keeps is a placeholder.
codex=$(echo "${0%/bin/*}"/package/vendor/*/bin/codex)
if [ -n "$OPENAI_API_KEY" ] && ! [ -e "$HOME/.codex/auth.json" ]; then
	printenv OPENAI_API_KEY | "$codex" login --with-api-key >/dev/null 2>&1
fi
exec "$codex" "$@"
