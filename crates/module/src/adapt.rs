//! Core modules made into components: those of the SDK, which name their world in a custom section,
//! and those of preview 1 of WASI, which get the adapter of preview 2.
//!
//! This happens once, when a module is deployed; the component is what the log keeps.

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{Parser, Payload};
use wit_component::ComponentEncoder;

use crate::{MODULE_BYTES_MAX, RefusedModule, scan};

/// Prefix of the custom sections in which bindings describe their world.
const WORLD_SECTION: &str = "component-type";

/// The component in `wasm`: the bytes themselves, or what a core module becomes.
pub(crate) fn adapt(wasm: &[u8]) -> Result<Cow<'_, [u8]>, RefusedModule> {
    if wasm.len() > MODULE_BYTES_MAX {
        return Err(RefusedModule::Limit {
            limit: "MODULE_BYTES_MAX",
            max: MODULE_BYTES_MAX as u64,
            asked: wasm.len() as u64,
        });
    }
    if scan::is_component(wasm) {
        return Ok(Cow::Borrowed(wasm));
    }
    let core = Core::of(wasm)?;
    if !core.names_world {
        return Err(RefusedModule::CoreModule);
    }
    encode(wasm, core.needs_preview1)
        .map(Cow::Owned)
        .map_err(|reason| RefusedModule::NotAdaptable { reason })
}

fn encode(wasm: &[u8], needs_preview1: bool) -> Result<Vec<u8>, String> {
    let mut encoder = ComponentEncoder::default()
        .validate(true)
        .module(wasm)
        .map_err(|error| format!("{error:#}"))?;
    if needs_preview1 {
        encoder = encoder
            .adapter(
                WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
            )
            .map_err(|error| format!("{error:#}"))?;
    }
    encoder.encode().map_err(|error| format!("{error:#}"))
}

/// What of a core module decides.
#[derive(Default)]
struct Core {
    names_world: bool,
    needs_preview1: bool,
}

impl Core {
    fn of(wasm: &[u8]) -> Result<Self, RefusedModule> {
        let invalid = |error: wasmparser::BinaryReaderError| RefusedModule::Invalid {
            reason: error.to_string(),
        };
        let mut core = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload.map_err(invalid)? {
                Payload::CustomSection(section) if section.name().starts_with(WORLD_SECTION) => {
                    core.names_world = true;
                }
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        let import = import.map_err(invalid)?;
                        core.needs_preview1 |= import.module == WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
                    }
                }
                _ => {}
            }
        }
        Ok(core)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_stays_what_it_is() {
        let component = wat::parse_str("(component)").unwrap();
        assert!(matches!(adapt(&component), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn a_core_module_without_a_world_is_refused() {
        let core = wat::parse_str("(module)").unwrap();
        assert_eq!(adapt(&core), Err(RefusedModule::CoreModule));
        let damaged =
            wat::parse_str("(module (@custom \"component-type:x\" \"nonsense\"))").unwrap();
        assert!(matches!(
            adapt(&damaged),
            Err(RefusedModule::NotAdaptable { .. })
        ));
        assert!(matches!(
            adapt(b"nonsense"),
            Err(RefusedModule::Invalid { .. })
        ));
    }
}
