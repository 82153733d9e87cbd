//! `prepull`: container images into machines before they boot.

fn main() -> std::process::ExitCode {
    prepull::cli::main()
}
