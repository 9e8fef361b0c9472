#!/bin/sh
# Written by Sandforge. What the agent would ask before its first task has been answered: the sandbox is
# what it is confined by, and the key is a placeholder.
if [ -n "$ANTHROPIC_API_KEY" ] && ! [ -e "$HOME/.claude.json" ]; then
	start=${ANTHROPIC_API_KEY%????????????????????}
	cat >"$HOME/.claude.json" <<END
{
  "hasCompletedOnboarding": true,
  "customApiKeyResponses": {"approved": ["${ANTHROPIC_API_KEY#"$start"}"], "rejected": []},
  "projects": {"/workspace": {"hasTrustDialogAccepted": true}}
}
END
fi
export DISABLE_AUTOUPDATER=1 CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
exec "${0%/bin/*}/package/claude" "$@"
