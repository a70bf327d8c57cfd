//! A look at a component before the compiler sees it: its imports by name, its world, and sizes that
//! would make compiling or running it expensive. Nothing here trusts a length of the input; the
//! parser is the one that the engine uses, and the engine validates everything again.

use wasmparser::{ComponentExternalKind, Encoding, MemoryType, Parser, Payload, TableType};

use crate::{
    CODE_BYTES_MAX, COMPONENT_ITEMS_MAX, CORE_MODULES_MAX, FUNCTION_BYTES_MAX, FUNCTION_LOCALS_MAX,
    FUNCTIONS_MAX, Limits, MODULE_BYTES_MAX, REFERENCE_TABLES_MAX, RefusedModule, WasiProfile,
};

/// Bytes of a page of linear memory.
const WASM_PAGE_BYTES: u64 = 64 * 1024;
/// Prefix of the interfaces that the host gives to modules.
const OWN_PACKAGE: &str = "truthdb:module/";
/// The version of them; later patch versions fit too.
const OWN_VERSION: &str = "0.1.";
/// Packages of WASI that the deterministic profile has.
const WASI_PACKAGES: [&str; 5] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:random/",
    "wasi:io/",
    "wasi:filesystem/",
];

/// The worlds as far as exports tell them apart: reducers and processors export the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Validator,
    Fold,
    Query,
}

/// What a component is, from its outside.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Names of all imports, with versions, in order.
    pub(crate) imports: Vec<String>,
    pub(crate) shape: Shape,
    /// The profile that its imports need.
    pub(crate) wasi: WasiProfile,
}

impl Scan {
    /// Whether the interface of our own package is imported.
    pub(crate) fn imports_own(&self, interface: &str) -> bool {
        self.imports
            .iter()
            .any(|import| own_interface(import) == Some(interface))
    }
}

/// The interface of our own package that an import names.
pub(crate) fn own_interface(import: &str) -> Option<&str> {
    let (interface, version) = import.strip_prefix(OWN_PACKAGE)?.split_once('@')?;
    version.starts_with(OWN_VERSION).then_some(interface)
}

/// Package and interface of an import of WASI that the deterministic profile has.
pub(crate) fn wasi_interface(import: &str) -> Option<&str> {
    let (interface, version) = import.split_once('@')?;
    let known = WASI_PACKAGES
        .iter()
        .any(|package| interface.starts_with(package));
    (known && version.starts_with("0.2.")).then_some(interface)
}

/// Whether bytes are a component (and not a core module), as far as their first bytes tell.
pub(crate) fn is_component(bytes: &[u8]) -> bool {
    Parser::is_component(bytes)
}

/// Looks at a component.
pub(crate) fn scan(wasm: &[u8], limits: &Limits) -> Result<Scan, RefusedModule> {
    within(
        "MODULE_BYTES_MAX",
        MODULE_BYTES_MAX as u64,
        wasm.len() as u64,
    )?;
    if Parser::is_core_wasm(wasm) {
        return Err(RefusedModule::CoreModule);
    }
    let mut sizes = Sizes::default();
    let mut outside = Outside::default();
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload.map_err(|error| invalid(&error))?;
        match &payload {
            Payload::Version { encoding, .. } if depth == 0 && *encoding == Encoding::Module => {
                return Err(RefusedModule::CoreModule);
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ => {}
        }
        sizes.count(&payload, limits)?;
        if depth == 0 {
            outside.see(&payload)?;
        }
    }
    outside.judge()
}

fn invalid(error: &dyn std::fmt::Display) -> RefusedModule {
    RefusedModule::Invalid {
        reason: error.to_string(),
    }
}

fn within(limit: &'static str, max: u64, asked: u64) -> Result<(), RefusedModule> {
    if asked > max {
        return Err(RefusedModule::Limit { limit, max, asked });
    }
    Ok(())
}

/// Sums over all core modules of a component.
#[derive(Default)]
struct Sizes {
    modules: u64,
    functions: u64,
    code_bytes: u64,
    tables: u64,
    items: u64,
}

impl Sizes {
    fn count(&mut self, payload: &Payload<'_>, limits: &Limits) -> Result<(), RefusedModule> {
        match payload {
            Payload::ModuleSection { .. } => {
                self.modules += 1;
                within("CORE_MODULES_MAX", CORE_MODULES_MAX, self.modules)
            }
            Payload::ComponentImportSection(items) => self.count_items(items.count()),
            Payload::ComponentExportSection(items) => self.count_items(items.count()),
            Payload::MemorySection(memories) => {
                for memory in memories.clone() {
                    check_memory(&memory.map_err(|error| invalid(&error))?, limits)?;
                }
                Ok(())
            }
            Payload::TableSection(tables) => {
                for table in tables.clone() {
                    self.tables += 1;
                    within(
                        "REFERENCE_TABLES_MAX",
                        u64::from(REFERENCE_TABLES_MAX),
                        self.tables,
                    )?;
                    check_table(&table.map_err(|error| invalid(&error))?.ty, limits)?;
                }
                Ok(())
            }
            Payload::CodeSectionStart { count, .. } => {
                self.functions += u64::from(*count);
                within("FUNCTIONS_MAX", FUNCTIONS_MAX, self.functions)
            }
            Payload::CodeSectionEntry(body) => {
                let bytes = body.range().len();
                self.code_bytes += bytes as u64;
                within(
                    "FUNCTION_BYTES_MAX",
                    FUNCTION_BYTES_MAX as u64,
                    bytes as u64,
                )?;
                within("CODE_BYTES_MAX", CODE_BYTES_MAX, self.code_bytes)?;
                let mut locals = 0u64;
                for group in body.get_locals_reader().map_err(|error| invalid(&error))? {
                    let (count, _) = group.map_err(|error| invalid(&error))?;
                    locals += u64::from(count);
                }
                within("FUNCTION_LOCALS_MAX", FUNCTION_LOCALS_MAX, locals)
            }
            _ => Ok(()),
        }
    }

    fn count_items(&mut self, count: u32) -> Result<(), RefusedModule> {
        self.items += u64::from(count);
        within("COMPONENT_ITEMS_MAX", COMPONENT_ITEMS_MAX, self.items)
    }
}

fn check_memory(memory: &MemoryType, limits: &Limits) -> Result<(), RefusedModule> {
    if memory.shared {
        return Err(RefusedModule::Feature {
            feature: "shared memory",
        });
    }
    if memory.memory64 {
        return Err(RefusedModule::Feature {
            feature: "64-bit memory",
        });
    }
    within(
        "memory_bytes",
        limits.memory_bytes,
        memory.initial.saturating_mul(WASM_PAGE_BYTES),
    )
}

fn check_table(table: &TableType, limits: &Limits) -> Result<(), RefusedModule> {
    if table.shared {
        return Err(RefusedModule::Feature {
            feature: "shared tables",
        });
    }
    within(
        "table_elements",
        u64::from(limits.table_elements),
        table.initial,
    )
}

/// Imports and exports of the component itself.
#[derive(Default)]
struct Outside {
    imports: Vec<String>,
    exports: Vec<String>,
}

impl Outside {
    fn see(&mut self, payload: &Payload<'_>) -> Result<(), RefusedModule> {
        match payload {
            Payload::ComponentImportSection(imports) => {
                for import in imports.clone() {
                    let import = import.map_err(|error| invalid(&error))?;
                    self.imports.push(import.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports.clone() {
                    let export = export.map_err(|error| invalid(&error))?;
                    if export.kind == ComponentExternalKind::Func {
                        self.exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn judge(self) -> Result<Scan, RefusedModule> {
        let mut wasi = WasiProfile::None;
        for import in &self.imports {
            if own_interface(import).is_some() {
                continue;
            }
            if wasi_interface(import).is_none() {
                return Err(RefusedModule::Import {
                    import: import.clone(),
                    reason: why_not(import),
                });
            }
            wasi = WasiProfile::Deterministic;
        }
        let shape = self.shape()?;
        Ok(Scan {
            imports: self.imports,
            shape,
            wasi,
        })
    }

    fn shape(&self) -> Result<Shape, RefusedModule> {
        let has = |name: &str| self.exports.iter().any(|export| export == name);
        let worlds = [
            (Shape::Validator, &["validate"][..]),
            (Shape::Fold, &["process", "migrate"]),
            (Shape::Query, &["run", "merge"]),
        ];
        let mut found = worlds.into_iter().filter(|(_, calls)| has(calls[0]));
        let (shape, calls) = found
            .next()
            .ok_or(RefusedModule::MissingExport { export: "process" })?;
        if let Some((_, others)) = found.next() {
            return Err(RefusedModule::TwoWorlds {
                one: calls[0],
                other: others[0],
            });
        }
        match calls
            .iter()
            .copied()
            .chain(["describe"])
            .find(|name| !has(name))
        {
            Some(export) => Err(RefusedModule::MissingExport { export }),
            None => Ok(shape),
        }
    }
}

/// Why an import is not given, and what would help.
fn why_not(import: &str) -> &'static str {
    if import.starts_with(OWN_PACKAGE) || import.starts_with("truthdb:") {
        "this host has truthdb:module@0.1.0; rebuild the module with a matching SDK"
    } else if import.starts_with("wasi:sockets/") || import.starts_with("wasi:http/") {
        "modules have no network; what they need comes as events"
    } else if import.starts_with("wasi:") && import.contains("@0.3") {
        "preview 3 of WASI is asynchronous, and its order is not deterministic; build for preview 2"
    } else if import.starts_with("wasi:") {
        "modules are given no such part of WASI"
    } else {
        "modules are given truthdb:module, and of WASI what the deterministic profile has"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanned(text: &str) -> Result<Scan, RefusedModule> {
        let wasm = wat::parse_str(text).unwrap();
        scan(&wasm, &Limits::default())
    }

    /// A component with these imports and a core module of these parts, exporting the fold's calls.
    fn component(imports: &str, core: &str) -> String {
        format!(
            r#"(component {imports}
                (core module $m (func (export "f")) {core})
                (core instance $i (instantiate $m))
                (func $f (canon lift (core func $i "f")))
                (export "describe" (func $f))
                (export "process" (func $f))
                (export "migrate" (func $f)))"#
        )
    }

    #[test]
    fn a_plain_fold_is_recognised() {
        let scan = scanned(&component("", "")).unwrap();
        assert_eq!((scan.shape, scan.wasi), (Shape::Fold, WasiProfile::None));
        assert_eq!(scan.imports, [""; 0]);
    }

    #[test]
    fn imports_are_judged_by_name() {
        let import = |name: &str| component(&format!(r#"(import "{name}" (instance))"#), "");
        let scan = scanned(&import("truthdb:module/state-read@0.1.0")).unwrap();
        assert!(scan.imports_own("state-read") && !scan.imports_own("emit"));
        assert_eq!(scan.wasi, WasiProfile::None);
        let scan = scanned(&import("wasi:clocks/wall-clock@0.2.3")).unwrap();
        assert_eq!(scan.wasi, WasiProfile::Deterministic);
        for (name, word) in [
            ("wasi:sockets/tcp@0.2.0", "network"),
            ("wasi:http/types@0.2.0", "network"),
            ("wasi:clocks/wall-clock@0.3.0", "preview 3"),
            ("wasi:threads/spawn@0.2.0", "no such part"),
            ("truthdb:module/state-read@0.2.0", "matching SDK"),
            ("acme:thing/x@1.0.0", "truthdb:module"),
        ] {
            let refused = scanned(&import(name)).unwrap_err().to_string();
            assert!(
                refused.contains(name) && refused.contains(word),
                "{refused}"
            );
        }
    }

    #[test]
    fn exports_decide_the_world() {
        let with = |exports: &[&str]| {
            let exports: String = exports
                .iter()
                .map(|name| format!("(export \"{name}\" (func $f))"))
                .collect();
            scanned(&format!(
                r#"(component (core module $m (func (export "f")))
                    (core instance $i (instantiate $m))
                    (func $f (canon lift (core func $i "f"))) {exports})"#
            ))
            .map(|scan| scan.shape)
        };
        assert_eq!(with(&["describe", "validate"]), Ok(Shape::Validator));
        assert_eq!(with(&["describe", "run", "merge"]), Ok(Shape::Query));
        let missing = |export| Err(RefusedModule::MissingExport { export });
        assert_eq!(with(&[]), missing("process"));
        assert_eq!(with(&["validate"]), missing("describe"));
        assert_eq!(with(&["describe", "run"]), missing("merge"));
        assert_eq!(with(&["describe", "process"]), missing("migrate"));
        let two = RefusedModule::TwoWorlds {
            one: "validate",
            other: "run",
        };
        assert_eq!(with(&["describe", "validate", "run"]), Err(two));
    }

    #[test]
    fn sizes_are_limits_with_names() {
        let refused = |core: &str| match scanned(&component("", core)) {
            Err(RefusedModule::Limit { limit, .. }) => limit,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused("(memory 32768)"), "memory_bytes");
        assert_eq!(refused("(table 1000000 funcref)"), "table_elements");
        assert_eq!(
            refused(&"(table 0 funcref)".repeat(9)),
            "REFERENCE_TABLES_MAX"
        );
        let locals = "i64 ".repeat(10_001);
        assert_eq!(
            refused(&format!("(func (local {locals}))")),
            "FUNCTION_LOCALS_MAX"
        );
        let body = "(nop)".repeat(FUNCTION_BYTES_MAX + 1);
        assert_eq!(refused(&format!("(func {body})")), "FUNCTION_BYTES_MAX");
    }

    #[test]
    fn what_is_off_is_named() {
        let refused = scanned(&component("", "(memory i64 1)")).unwrap_err();
        assert!(refused.to_string().contains("64-bit memory"), "{refused}");
        let refused = scanned(&component("", "(memory 1 1 shared)")).unwrap_err();
        assert!(refused.to_string().contains("shared memory"), "{refused}");
    }

    #[test]
    fn other_bytes_are_refused_at_every_length() {
        let wasm = wat::parse_str(component("", "(memory 1)")).unwrap();
        for cut in 0..wasm.len() {
            scan(&wasm[..cut], &Limits::default()).unwrap_err();
        }
        for bytes in [&b""[..], b"#!/bin/sh", b"\0asm\x01\0\0\0", &[0xff; 100]] {
            scan(bytes, &Limits::default()).unwrap_err();
        }
        assert_eq!(
            scan(b"\0asm\x01\0\0\0", &Limits::default()).unwrap_err(),
            RefusedModule::CoreModule
        );
    }

    proptest::proptest! {
        #[test]
        fn changed_bytes_never_panic(at: proptest::sample::Index, byte: u8) {
            let mut wasm = wat::parse_str(component("", "(memory 1) (table 1 funcref)")).unwrap();
            let at = at.index(wasm.len());
            wasm[at] = byte;
            let _ = scan(&wasm, &Limits::default());
        }
    }
}
