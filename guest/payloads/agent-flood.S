# In place of a Linux kernel with hull's init: it says Hello and Ready over the agent's port, and then
# without end why a command could not be run, in texts with control characters. tests/hostile.rs makes an
# ELF file of it, which is loaded elsewhere: all addresses are relative, or of memory that is free.
.include "header.inc"
	.equ VERSION, 4			# of the agent's protocol (guest/agent)
	.equ DESC, 0x400000
	.equ AVAIL, 0x401000
	.equ USED, 0x402000
	.equ TEXTS, 0x500000
	.equ TEXTS_SIZE, 2 << 20
	.equ OUTPUT, 5			# the queue of port 1 to the host (virtio 1.2, 5.3.2)
	.equ ENTRIES, 64

.code64
.text
	flat_header 64
	mov $0xc0001000, %ebx
1:	cmpl $3, 0x008(%rbx)		# DeviceID: a console
	je 2f
	add $0x1000, %ebx
	jmp 1b
2:	movl $0, 0x070(%rbx)		# Status: reset, ACKNOWLEDGE, DRIVER
	movl $1, 0x070(%rbx)
	movl $3, 0x070(%rbx)
	movl $0, 0x024(%rbx)		# features: MULTIPORT and VERSION_1
	movl $2, 0x020(%rbx)
	movl $1, 0x024(%rbx)
	movl $1, 0x020(%rbx)
	movl $0xb, 0x070(%rbx)
	movl $OUTPUT, 0x030(%rbx)
	movl $ENTRIES, 0x038(%rbx)
	movl $DESC, 0x080(%rbx)
	movl $AVAIL, 0x090(%rbx)
	movl $USED, 0x0a0(%rbx)
	movl $1, 0x044(%rbx)
	movl $0xf, 0x070(%rbx)

# 2 MiB of messages of 64 bytes each.
	cld
	mov $TEXTS, %edi
	mov $TEXTS_SIZE / 64, %edx
3:	lea text(%rip), %rsi
	mov $8, %ecx
	rep movsq
	dec %edx
	jnz 3b

# Chain 0 is the greeting, chain 1 the texts 62 times; behind the greeting the ring has chain 1 alone.
	lea greeting(%rip), %rax
	mov %rax, DESC
	movq $greeting_end - greeting, DESC + 8
	mov $DESC + 16, %edi
	mov $1, %ecx
4:	movq $TEXTS, (%rdi)
	movl $TEXTS_SIZE, 8(%rdi)
	movl $0, 12(%rdi)
	cmp $62, %ecx
	je 5f
	lea 1(%rcx), %eax
	shl $16, %eax
	or $1, %eax			# NEXT
	mov %eax, 12(%rdi)
5:	add $16, %edi
	inc %ecx
	cmp $62, %ecx
	jbe 4b
	movw $0, AVAIL + 4
	mov $AVAIL + 6, %edi
	mov $ENTRIES - 1, %ecx
	mov $1, %eax
	rep stosw
	movw $ENTRIES, AVAIL + 2
	movl $OUTPUT, 0x050(%rbx)
6:	pause
	jmp 6b

greeting:
	.byte 1				# Hello
	.long 8
	.ascii "HULL"
	.long VERSION
	.byte 2				# Ready
	.long 0
greeting_end:

text:	.byte 7				# Error
	.long 59
	.ascii "\033[2Jhull: all is well"
	.zero 64 - (. - text), '.'
