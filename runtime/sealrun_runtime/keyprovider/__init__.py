"""An ocicrypt key provider (cmd protocol), for the tenant who encrypts an image; used by no sandbox."""
