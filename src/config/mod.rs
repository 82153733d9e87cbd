//! Files of containers(5): each `parse(&str)` and `load(paths)`.
