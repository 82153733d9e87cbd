//! `/etc/prepull/helper.toml`: who may write where.
