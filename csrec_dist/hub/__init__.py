"""The Hugging Face Hub: folders that are put there and fetched from there, and the Markdown of their cards."""
