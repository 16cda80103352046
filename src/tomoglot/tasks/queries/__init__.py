"""What is asked of a model in words: prompts of findings, and searches over volumes and reports."""
