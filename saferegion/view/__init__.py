"""Pictures for people: heat maps of what the guard did, curves of what was learned."""
