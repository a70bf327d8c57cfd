//! `truthdb-installer`: the program that BusyBox init starts.

fn main() {}
