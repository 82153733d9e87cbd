//! The fields of Go's structs, each struct with the file that declares it.
//!
//! Each table is the newest declaration. Older versions of these structs have fewer fields and none of another type
//! (compared: image-spec 1.0.2, 1.1.0-rc2 and 1.1.1; containers/image 5.21.1 and 5.38.0), so what fits the newest
//! fits all. A field is under the name in its `json` tag, or under its own if the tag has none.

/// Type of a field.
#[derive(Debug)]
pub(super) enum Type {
    /// `string`, and types made of it: `digest.Digest` has no `UnmarshalJSON`, so any string is taken.
    String,
    /// `bool`.
    Bool,
    /// `int` and `int64` on machines of 64 bits, and `time.Duration`, which is an `int64`.
    Int,
    /// `time.Time` and `*time.Time`.
    Time,
    /// `[]string`.
    Strings,
    /// `strslice.StrSlice`: a string, or a list of strings (containers/image `pkg/strslice/strslice.go`).
    StrSlice,
    /// `[]byte`: base64, or a list of [`Type::Byte`].
    Bytes,
    /// `uint8`.
    Byte,
    /// `map[string]string`.
    StringMap,
    /// `map[string]struct{}`.
    Set,
    /// `struct{}`.
    Empty,
    /// `interface{}`: any value, but its numbers become `float64`.
    Any,
    /// A struct, or a pointer to one.
    Struct(&'static Layout),
    /// A list of structs.
    List(&'static Layout),
}

/// A struct.
#[derive(Debug)]
pub(super) struct Layout {
    /// Structs whose fields are also the struct's own.
    embedded: &'static [&'static Layout],
    /// Name and type of the fields. They hide fields of embedded structs with the same name.
    fields: &'static [(&'static str, Type)],
}

impl Layout {
    /// Returns all fields, those of embedded structs after the struct's own.
    pub(super) fn fields(&self) -> impl Iterator<Item = &'static (&'static str, Type)> + use<> {
        self.fields.iter().chain(self.embedded.iter().flat_map(|embedded| embedded.fields))
    }
}

/// Appends the paths of all fields of `layout`, with `[]` for an element of a list and `{}` for a value of a map.
pub(super) fn paths(layout: &Layout, within: &str, out: &mut Vec<String>) {
    for (name, of) in layout.fields() {
        let path = format!("{within}{name}");
        out.push(path.clone());
        match of {
            Type::Strings | Type::StrSlice | Type::Bytes => out.push(format!("{path}[]")),
            Type::StringMap | Type::Set => out.push(format!("{path}{{}}")),
            Type::Struct(layout) => paths(layout, &format!("{path}."), out),
            Type::List(layout) => {
                out.push(format!("{path}[]"));
                paths(layout, &format!("{path}[]."), out);
            }
            Type::String | Type::Bool | Type::Int | Type::Time | Type::Byte | Type::Empty | Type::Any => {}
        }
    }
}

/// `imgspecv1.Platform` (image-spec `specs-go/v1/descriptor.go`).
static PLATFORM: Layout = Layout {
    embedded: &[],
    fields: &[
        ("architecture", Type::String),
        ("os", Type::String),
        ("os.version", Type::String),
        ("os.features", Type::Strings),
        ("variant", Type::String),
    ],
};

/// `imgspecv1.Descriptor` (image-spec `specs-go/v1/descriptor.go`).
static DESCRIPTOR: Layout = Layout {
    embedded: &[],
    fields: &[
        ("mediaType", Type::String),
        ("digest", Type::String),
        ("size", Type::Int),
        ("urls", Type::Strings),
        ("annotations", Type::StringMap),
        ("data", Type::Bytes),
        ("platform", Type::Struct(&PLATFORM)),
        ("artifactType", Type::String),
    ],
};

/// What tells the kind of a manifest (containers/image `internal/manifest/manifest.go`, `GuessMIMEType`).
pub(super) static VERSIONED: Layout = Layout {
    embedded: &[],
    fields: &[("mediaType", Type::String), ("schemaVersion", Type::Int), ("signatures", Type::Any)],
};

/// Fields that only some kinds of manifest have (containers/image `internal/manifest/common.go`,
/// `ValidateUnambiguousManifestFormat`). They are unmarshalled whatever the kind is.
pub(super) static OF_SOME_KINDS: Layout = Layout {
    embedded: &[],
    fields: &[
        ("config", Type::Any),
        ("fsLayers", Type::Any),
        ("history", Type::Any),
        ("layers", Type::Any),
        ("manifests", Type::Any),
    ],
};

/// `imgspecv1.Manifest` (image-spec `specs-go/v1/manifest.go`; `Versioned` in `specs-go/versioned.go`).
pub(super) static MANIFEST: Layout = Layout {
    embedded: &[],
    fields: &[
        ("schemaVersion", Type::Int),
        ("mediaType", Type::String),
        ("artifactType", Type::String),
        ("config", Type::Struct(&DESCRIPTOR)),
        ("layers", Type::List(&DESCRIPTOR)),
        ("subject", Type::Struct(&DESCRIPTOR)),
        ("annotations", Type::StringMap),
    ],
};

/// `imgspecv1.Index` (image-spec `specs-go/v1/index.go`).
pub(super) static INDEX: Layout = Layout {
    embedded: &[],
    fields: &[
        ("schemaVersion", Type::Int),
        ("mediaType", Type::String),
        ("artifactType", Type::String),
        ("manifests", Type::List(&DESCRIPTOR)),
        ("subject", Type::Struct(&DESCRIPTOR)),
        ("annotations", Type::StringMap),
    ],
};

/// `Schema2Descriptor` (containers/image `internal/manifest/docker_schema2.go`).
static SCHEMA2_DESCRIPTOR: Layout = Layout {
    embedded: &[],
    fields: &[("mediaType", Type::String), ("size", Type::Int), ("digest", Type::String), ("urls", Type::Strings)],
};

/// `Schema2` (containers/image `manifest/docker_schema2.go`).
pub(super) static SCHEMA2: Layout = Layout {
    embedded: &[],
    fields: &[
        ("schemaVersion", Type::Int),
        ("mediaType", Type::String),
        ("config", Type::Struct(&SCHEMA2_DESCRIPTOR)),
        ("layers", Type::List(&SCHEMA2_DESCRIPTOR)),
    ],
};

/// `Schema2ListPublic` (containers/image `internal/manifest/docker_schema2_list.go`).
pub(super) static MANIFEST_LIST: Layout = Layout {
    embedded: &[],
    fields: &[
        ("schemaVersion", Type::Int),
        ("mediaType", Type::String),
        ("manifests", Type::List(&MANIFEST_LIST_ENTRY)),
    ],
};

/// `Schema2ManifestDescriptor` (the same file).
static MANIFEST_LIST_ENTRY: Layout =
    Layout { embedded: &[&SCHEMA2_DESCRIPTOR], fields: &[("platform", Type::Struct(&MANIFEST_LIST_PLATFORM))] };

/// `Schema2PlatformSpec` (the same file).
static MANIFEST_LIST_PLATFORM: Layout = Layout { embedded: &[&PLATFORM], fields: &[("features", Type::Strings)] };

/// `Schema1` (containers/image `manifest/docker_schema1.go`).
pub(super) static SCHEMA1: Layout = Layout {
    embedded: &[],
    fields: &[
        ("name", Type::String),
        ("tag", Type::String),
        ("architecture", Type::String),
        ("fsLayers", Type::List(&Layout { embedded: &[], fields: &[("blobSum", Type::String)] })),
        ("history", Type::List(&Layout { embedded: &[], fields: &[("v1Compatibility", Type::String)] })),
        ("schemaVersion", Type::Int),
    ],
};

/// `imgspecv1.Image` (image-spec `specs-go/v1/config.go`).
pub(super) static IMAGE: Layout = Layout {
    embedded: &[&PLATFORM],
    fields: &[
        ("created", Type::Time),
        ("author", Type::String),
        ("config", Type::Struct(&IMAGE_CONFIG)),
        ("rootfs", Type::Struct(&ROOTFS)),
        ("history", Type::List(&HISTORY)),
    ],
};

/// `imgspecv1.ImageConfig` (the same file).
static IMAGE_CONFIG: Layout = Layout {
    embedded: &[],
    fields: &[
        ("User", Type::String),
        ("ExposedPorts", Type::Set),
        ("Env", Type::Strings),
        ("Entrypoint", Type::Strings),
        ("Cmd", Type::Strings),
        ("Volumes", Type::Set),
        ("WorkingDir", Type::String),
        ("Labels", Type::StringMap),
        ("StopSignal", Type::String),
        ("ArgsEscaped", Type::Bool),
    ],
};

/// `imgspecv1.RootFS` (the same file), and `Schema2RootFS` (containers/image `manifest/docker_schema2.go`).
static ROOTFS: Layout = Layout { embedded: &[], fields: &[("type", Type::String), ("diff_ids", Type::Strings)] };

/// `imgspecv1.History` (image-spec `specs-go/v1/config.go`), and `Schema2History` (containers/image
/// `manifest/docker_schema2.go`).
static HISTORY: Layout = Layout {
    embedded: &[],
    fields: &[
        ("created", Type::Time),
        ("created_by", Type::String),
        ("author", Type::String),
        ("comment", Type::String),
        ("empty_layer", Type::Bool),
    ],
};

/// `Schema2Image` (containers/image `manifest/docker_schema2.go`).
pub(super) static SCHEMA2_IMAGE: Layout = Layout {
    embedded: &[&SCHEMA2_V1_IMAGE],
    fields: &[
        ("parent", Type::String),
        ("rootfs", Type::Struct(&ROOTFS)),
        ("history", Type::List(&HISTORY)),
        ("os.version", Type::String),
        ("os.features", Type::Strings),
    ],
};

/// `Schema2V1Image` (the same file).
static SCHEMA2_V1_IMAGE: Layout = Layout {
    embedded: &[],
    fields: &[
        ("id", Type::String),
        ("parent", Type::String),
        ("comment", Type::String),
        ("created", Type::Time),
        ("container", Type::String),
        ("container_config", Type::Struct(&SCHEMA2_CONFIG)),
        ("docker_version", Type::String),
        ("author", Type::String),
        ("config", Type::Struct(&SCHEMA2_CONFIG)),
        ("architecture", Type::String),
        ("variant", Type::String),
        ("os", Type::String),
        ("Size", Type::Int),
    ],
};

/// `Schema2Config` (the same file).
static SCHEMA2_CONFIG: Layout = Layout {
    embedded: &[],
    fields: &[
        ("Hostname", Type::String),
        ("Domainname", Type::String),
        ("User", Type::String),
        ("AttachStdin", Type::Bool),
        ("AttachStdout", Type::Bool),
        ("AttachStderr", Type::Bool),
        ("ExposedPorts", Type::Set),
        ("Tty", Type::Bool),
        ("OpenStdin", Type::Bool),
        ("StdinOnce", Type::Bool),
        ("Env", Type::Strings),
        ("Cmd", Type::StrSlice),
        ("Healthcheck", Type::Struct(&SCHEMA2_HEALTH_CONFIG)),
        ("ArgsEscaped", Type::Bool),
        ("Image", Type::String),
        ("Volumes", Type::Set),
        ("WorkingDir", Type::String),
        ("Entrypoint", Type::StrSlice),
        ("NetworkDisabled", Type::Bool),
        ("MacAddress", Type::String),
        ("OnBuild", Type::Strings),
        ("Labels", Type::StringMap),
        ("StopSignal", Type::String),
        ("StopTimeout", Type::Int),
        ("Shell", Type::StrSlice),
    ],
};

/// `Schema2HealthConfig` (the same file).
static SCHEMA2_HEALTH_CONFIG: Layout = Layout {
    embedded: &[],
    fields: &[
        ("Test", Type::Strings),
        ("StartPeriod", Type::Int),
        ("StartInterval", Type::Int),
        ("Interval", Type::Int),
        ("Timeout", Type::Int),
        ("Retries", Type::Int),
    ],
};
