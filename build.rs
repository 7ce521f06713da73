//! Build script: hands the built guest to the program.

fn main() {}
