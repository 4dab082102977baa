"""Programs whose memory runs out; see inject.py."""
