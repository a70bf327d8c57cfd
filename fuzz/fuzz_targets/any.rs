//! The entry point of cargo-fuzz: the first byte chooses the decoder.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Some((choice, input)) = data.split_first() {
        let targets = truthdb_fuzz::TARGETS;
        (targets[usize::from(*choice) % targets.len()].run)(input);
    }
});
