
# Mount points, for the commands of interceptor that take one.
_interceptor_mount_points() {
    _interceptor "$@"
    local current="${COMP_WORDS[COMP_CWORD]}" types=() points
    # Options and their values are completed above.
    [[ $current == -* || ${COMP_WORDS[COMP_CWORD - 1]} == --* ]] && return
    case "${COMP_WORDS[1]}" in
        profile | status | top | unmount | warmup) types=(--types fuse.interceptor,fuse.interceptor-attach) ;;
        attach | observe) ;;
        *) return ;;
    esac
    points=$(findmnt --noheadings --raw --output TARGET "${types[@]}" 2>/dev/null)
    local IFS=$'\n'
    # What the generated function offers here are names of arguments.
    COMPREPLY=($(compgen -W "$points" -- "$current"))
}

complete -F _interceptor_mount_points -o nosort -o bashdefault -o default interceptor
