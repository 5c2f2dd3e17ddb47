"""The experiments, as data; `resolvers` is what they ask of the machine."""
