"""The kinds `calm` and `calm_discrete`: language models that predict a chunk of K tokens at each step."""
