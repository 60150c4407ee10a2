"""``python -m fedgram`` is ``fedgram``."""

from fedgram.cli import main

if __name__ == "__main__":
    main()
