//! What the helper takes from itself before it reads the first byte of its input.
