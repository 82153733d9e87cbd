//! `restore`: in the machine, what its unpacker has dropped.
